// Keeps what is marked data-live as the server has it: told by server-sent events, the page is read again.
"use strict";
(() => {
  const address = document.body.dataset.events;
  if (!address || !window.EventSource) return;
  let due = false, busy = false;

  async function refresh() {
    due = true;
    if (busy || document.hidden) return;
    busy = true;
    while (due) {
      due = false;
      try {
        const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
        if (answer.redirected) { location.reload(); return; }  // the session has ended
        if (answer.ok) replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
      } catch { /* the next event tries again */ }
      await new Promise((done) => setTimeout(done, 1000));
    }
    busy = false;
  }

  function replace(fresh) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const now = fresh.getElementById(old.id);
      if (!now || now.innerHTML === old.innerHTML) continue;
      const open = [...old.querySelectorAll("details[open]")].map((one) => one.id);
      const focused = old.contains(document.activeElement) ? place(old, document.activeElement) : null;
      old.replaceChildren(...document.importNode(now, true).childNodes);
      for (const id of open) { const one = id && document.getElementById(id); if (one) one.open = true; }
      if (focused !== null) old.querySelectorAll("a, button, summary, [tabindex]")[focused]?.focus();
    }
  }

  function place(root, element) {
    return [...root.querySelectorAll("a, button, summary, [tabindex]")].indexOf(element);
  }

  const events = new EventSource(address);
  events.addEventListener("open", refresh);  // what changed before anybody listened
  events.addEventListener("changed", refresh);
  events.addEventListener("ended", () => { events.close(); location.reload(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && due) refresh(); });
})();
