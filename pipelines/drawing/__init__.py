"""Drawing for people: colours, display planes and page elements that renderings and pictures share."""
