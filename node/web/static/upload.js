// The phone's page: sends the chosen files one after the other, then shows what became of them.
"use strict";
(() => {
  const address = document.body.dataset.upload;
  const input = document.getElementById("files");
  const list = document.getElementById("list");
  const result = document.getElementById("result");
  const waiting = [];
  const TRIES = 4, PAUSE = 4000;  // of a file that the node can't take just now
  let busy = false, watching = false, shown = "";

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  input.addEventListener("change", () => {
    if (!list.querySelector("progress, .done")) list.replaceChildren();
    for (const file of input.files) {
      const row = element("li");
      const said = element("span", "waits", "soft");
      const progress = element("progress");
      progress.max = 1; progress.value = 0;
      progress.setAttribute("aria-label", `Progress of ${file.name}`);
      row.append(element("span", file.name, "mono"), progress, said);
      list.append(row);
      waiting.push({ file, progress, said });
    }
    input.value = "";
    send();
  });

  async function send() {
    if (busy) return;
    busy = true;
    let stored = 0;
    for (let next = waiting.shift(); next; next = waiting.shift()) stored += await one(next);
    if (stored) {
      await fetch(`${address}/done`, { method: "POST" }).catch(() => {});
      watch();
    }
    busy = false;
    if (waiting.length) send();
  }

  function one({ file, progress, said }, tries = 1) {
    return new Promise((done) => {
      const request = new XMLHttpRequest();
      const end = (text, tone, stored) => {
        said.textContent = text; said.className = `done ${tone}`;
        progress.remove();
        done(stored);
      };
      request.upload.addEventListener("progress", (event) => {
        if (event.lengthComputable) progress.value = event.loaded / event.total;
        said.textContent = event.loaded === event.total ? "being stored" : "being sent";
      });
      request.addEventListener("load", () => {
        let answer = {};
        try { answer = JSON.parse(request.responseText); } catch { /* said below */ }
        if (request.status === 503 && tries < TRIES) {
          said.textContent = `${answer.error}; trying again`;
          setTimeout(() => one({ file, progress, said }, tries + 1).then(done), PAUSE);
          return;
        }
        if (answer.error || answer.stored === undefined) {
          end(answer.error || `refused (${request.status})`, "bad", 0);
          return;
        }
        const refused = Object.entries(answer.refused).map(([why, count]) => `${count} refused: ${why}`);
        const skipped = answer.skipped ? [`${answer.skipped} not DICOM`] : [];
        const text = [`${answer.stored} stored`, ...refused, ...skipped].join("; ");
        end(text, refused.length ? "warn" : "good", answer.stored);
      });
      request.addEventListener("error", () => end("the connection broke; choose the file again", "bad", 0));
      request.open("POST", `${address}/files`);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.send(file);
    });
  }

  async function watch() {
    if (watching) return;
    watching = true;
    for (;;) {
      try {
        const answer = await fetch(`${address}/state`);
        if (answer.status === 404) {
          result.append(element("p", "This link is over.", "soft"));
          return;
        }
        if (answer.ok) show(await answer.json());
      } catch { /* the next one */ }
      await new Promise((done) => setTimeout(done, 2000));
    }
  }

  function show(state) {
    const text = JSON.stringify(state);
    if (text === shown) return;
    shown = text;
    result.replaceChildren();
    for (const series of state.series) {
      result.append(element("p", series.sentence, `said ${series.tone}`));
      for (const job of series.jobs) {
        if (job.conclusion) result.append(element("p", job.conclusion));
        const estimates = Object.entries(job.estimates);
        if (estimates.length) {
          const table = element("table"), body = element("tbody"), card = element("div", undefined, "card");
          table.append(element("caption", "Estimates"), body);
          for (const [name, p] of estimates) {
            const row = element("tr"), cell = element("th", name.replaceAll("_", " "));
            cell.scope = "row";
            row.append(cell, element("td", `${(100 * p).toFixed(1)} %`, "number"));
            body.append(row);
          }
          card.append(table);
          result.append(card);
        }
        for (const picture of job.pictures) {
          const figure = element("figure"), image = element("img");
          image.src = `${address}/pictures/${job.job_id}/${picture.number}`;
          image.alt = `${picture.title}: ${job.conclusion}`;
          figure.append(image, element("figcaption", picture.title));
          result.append(figure);
        }
      }
    }
  }
})();
