// An identity provider for tests: oidc-provider with its own login pages, configured by a file of JSON.
//
// {port, issuer, clients, jwks, people: {login: claims}, claims_in_id_token}
import { readFileSync } from "node:fs";
import { Provider } from "oidc-provider";

const said = JSON.parse(readFileSync(process.argv[2], "utf8"));
const provider = new Provider(said.issuer, {
  clients: said.clients,
  jwks: said.jwks,
  claims: { openid: ["sub"], profile: ["preferred_username", "groups"] },
  conformIdTokenClaims: !said.claims_in_id_token,
  cookies: { keys: ["of a test"] },
  pkce: { required: () => true },
  features: { rpInitiatedLogout: { enabled: true } },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...said.people[id] }) }),
});
provider.listen(said.port, "localhost", () => console.log("listening"));
