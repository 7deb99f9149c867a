// The trace explorer of the report. It reads the tree that explorer.py describes, and puts all of
// its texts on the page as text nodes: none is ever parsed as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const PAGE = 10;
  const VERDICTS = { right: "✓ Right", wrong: "✗ Wrong", unjudged: "Not judged" };
  const FACETS = ["model", "mode", "benchmark"];
  const state = { set: data.sets[data.start], verdict: "all", query: "", shown: PAGE };

  // el("p.note", {id: ..}, "text", node): children that are plain objects are properties.
  function el(kind, ...children) {
    const [tag, className] = kind.split(".");
    const node = document.createElement(tag);
    if (className) node.className = className;
    for (const child of children.filter((child) => child !== null)) {
      if (typeof child === "string" || child instanceof Node) node.append(child);
      else Object.assign(node, child);
    }
    return node;
  }

  // Control characters by their pictures: a browser would show nothing.
  const seen = (text) =>
    text.replace(/[\0-\x08\x0b-\x1f\x7f]/g, (c) =>
      c === "\x7f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0)),
    );
  // A direction of its own: no text turns round what stands beside it.
  const own = (text) => el("bdi", seen(text));
  const verbatim = (text) => el("div.text", { dir: "auto" }, seen(text) || "\u00a0");
  const number = (n) => n.toLocaleString("en-US");
  const under = (letter) => `ball under ${letter}`;
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

  // A hue per name, by its place among A .. Z, AA ..: neighbours are far apart on the circle.
  function hueOf(name) {
    let place = 0;
    for (const letter of name) place = (place * 26 + letter.codePointAt(0) - 64) % 99991;
    return ((place * 137.508) % 360).toFixed(1);
  }

  function chip(token) {
    const node = el("span.chip", own(data.tokens[token]));
    node.style.setProperty("--hue", hueOf(data.tokens[token]));
    return node;
  }

  // ---- what tokens stand for

  // Of a token at a place within its step; null where no state has more than half of it.
  function mostly(set, place, token) {
    const [, letter, times, of] = (set.codes[place] || []).find((said) => said[0] === token) || [];
    return 2 * times > of ? { letter, times, of } : null;
  }

  // Of token `at` of a row: its step, counted from 1, the state after it, what the token mostly
  // stands for, and whether that is another state. null where it stands for no step.
  function stepOf(set, row, at) {
    const steps = row.per_step ? data.tasks[row.of].steps : null;
    if (!steps) return null;
    const step = Math.floor(at / row.per_step);
    const [text, letter] = steps[step];
    const means = mostly(set, at % row.per_step, row.trace[at]);
    return { step: step + 1, text, letter, means, odd: means !== null && means.letter !== letter };
  }

  // The same in words: of the step, and of the token.
  function toldOf(set, row, at) {
    const known = stepOf(set, row, at);
    // Which code of its step a shuffled one was, nobody knows.
    const alone = set.codes.length === 1 ? mostly(set, 0, row.trace[at]) : null;
    const means = known ? known.means : alone;
    const place = `${at + 1} of ${row.trace.length + row.trace_cut}`;
    const parts = [`Token ${data.tokens[row.trace[at]]}, ${place}`];
    if (means) {
      const times = `${number(means.times)} of ${number(means.of)} times`;
      parts.push(`mostly stands for ${under(means.letter)} (${times})`);
    }
    if (known && !means) parts.push("mostly stands for no one state");
    if (known && known.odd) parts.push("not for this state");
    return {
      step: known ? `${known.step}: ${known.text} → ${under(known.letter)}` : null,
      token: `${parts.join(", ")}.`,
    };
  }

  function legend(set) {
    return set.codes.map((codes, place) => {
      const groups = new Map();
      for (const said of [...codes].sort((a, b) => b[3] - a[3])) {
        const means = mostly(set, place, said[0]);
        const label = means ? under(means.letter) : "no one state";
        groups.set(label, [...(groups.get(label) || []), said]);
      }
      const code = ([token, letter, times, of]) => {
        const title = `${under(letter)}: ${number(times)} of ${number(of)} times`;
        return el("span.code", { title }, chip(token), `${Math.floor((100 * times) / of)}%`);
      };
      const cells = [...groups]
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([label, said]) => el("div", el("dt", label), el("dd", ...said.map(code))));
      const which = set.codes.length > 1 ? `token ${place + 1} of a step` : "each token";
      return el("div.legend", el("h3", `What ${which} mostly stands for`), el("dl", ...cells));
    });
  }

  // How to read what stands under a token.
  const key = () =>
    el(
      "p.key",
      "Under a token of a trace: its step, and the cup after it. ",
      el("span.odd", el("span.chip", "dashed")),
      " mostly stands for another cup.",
    );

  // ---- one answer

  function problem(label, task) {
    const { text, steps } = data.tasks[task];
    let step = 0;
    const lines = text.split("\n").map((line) => {
      const node = el("div", { dir: "auto" }, seen(line) || "\u00a0");
      if (steps && /^\d+: ./.test(line)) {
        step += 1;
        node.dataset.step = step;
      }
      return node;
    });
    return el("div", label, el("div.text", ...lines));
  }

  // The tokens are one stop of the tab key; arrows, Home and End go from one to the next.
  function trace(set, row, asked) {
    const told = el("p.told");
    const tokens = row.trace.map((token, at) => {
      const known = stepOf(set, row, at);
      const caption = known && el("span.under", `${known.step} · ${known.letter}`);
      const button = el("button.token", { type: "button" }, chip(token), caption);
      const said = toldOf(set, row, at);
      button.ariaLabel = seen([said.step, said.token].filter(Boolean).join(". "));
      button.classList.toggle("odd", known !== null && known.odd);
      button.addEventListener("pointerenter", () => point(at));
      button.addEventListener("focus", () => point(at));
      return button;
    });

    function point(at) {
      const said = toldOf(set, row, at);
      const step = said.step ? [el("strong", own(said.step)), el("br")] : [];
      told.replaceChildren(...step, own(said.token));
      tokens.forEach((button, other) => {
        button.classList.toggle("pointed", other === at);
        button.tabIndex = other === at ? 0 : -1;
      });
      const now = stepOf(set, row, at);
      for (const line of asked.querySelectorAll("[data-step]"))
        line.classList.toggle("pointed", now !== null && line.dataset.step === String(now.step));
    }

    const list = el("div.trace", { role: "group" }, ...tokens);
    list.ariaLabel = "Trace; arrow keys go from token to token";
    list.addEventListener("keydown", (event) => {
      const at = tokens.indexOf(document.activeElement);
      const goals = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tokens.length - 1 };
      const goal = tokens[goals[event.key]];
      if (!goal) return;
      event.preventDefault();
      goal.focus();
    });
    if (row.trace_cut) list.append(el("span.cut", `and ${number(row.trace_cut)} more`));
    // To begin with, the first token that says something else than its step, or else the last one.
    const odd = tokens.findIndex((button) => button.classList.contains("odd"));
    if (tokens.length) point(odd < 0 ? tokens.length - 1 : odd);
    else told.append("No token.");
    return [list, told];
  }

  function card(set, row) {
    const [reasoning, response, total] = row.counts.map(number);
    const codes = number(row.trace.length + row.trace_cut);
    const score = row.score > 0 && row.score < 1 ? ` (${row.score.toFixed(2)})` : "";
    const sample = set.rows.some((other) => other.sample) ? `, sample ${row.sample + 1}` : "";
    const other = row.of !== row.task;
    const from = el("h4", "Trace taken from ", own(data.tasks[row.of].id));
    const asked = [problem(el("h4", "Problem"), row.task)];
    if (other) asked.push(problem(from, row.of));
    const thought = el("details", el("summary", "Thought"), verbatim(row.thought));
    const fact = (name, value) => el("div", el("dt", name), value);
    return el(
      `article.${row.verdict}`,
      el(
        "header",
        el("span.verdict", VERDICTS[row.verdict] + score),
        el("h3", own(data.tasks[row.task].id), sample),
        el(
          "span.counts",
          `${codes} abstract · ${reasoning} reasoning + ${response} response = ${total} tokens`,
        ),
      ),
      el("div.asked", ...asked),
      el(
        "div.said",
        el("h4", other ? "Another problem's trace" : "Trace"),
        ...trace(set, row, asked[asked.length - 1]),
        row.thought ? thought : null,
        el("h4", row.finish === "length" ? "Answer, cut at its limit" : "Answer"),
        verbatim(row.answer),
        el(
          "dl",
          fact("Read as", el("dd.read", row.read === null ? el("em", "nothing") : own(row.read))),
          fact("Gold", el("dd", own(row.gold))),
        ),
      ),
    );
  }

  // ---- which answers

  const of = (set, verdict) =>
    set.rows.filter((row) => verdict === "all" || row.verdict === verdict);

  function matches(row) {
    const { id, text } = data.tasks[row.task];
    const names = row.trace.map((token) => data.tokens[token]).join(" ");
    const texts = [id, text, names, row.thought, row.answer, row.read || "", row.gold];
    return texts.some((value) => value.toLowerCase().includes(state.query));
  }

  function leftOut(set) {
    const all = number(sum(Object.values(set.answers)));
    const parts = Object.entries(set.answers)
      .filter(([, n]) => n)
      .map(([verdict, n]) => `${number(of(set, verdict).length)} of ${number(n)} ${verdict}`);
    const here = number(set.rows.length);
    if (here === all) return `All ${all} answers of ${set.file} are on this page.`;
    return `On this page are ${here} of the ${all} answers in ${set.file}: ${parts.join(", ")}.`;
  }

  const selects = FACETS.map((facet) => {
    const values = [...new Set(data.sets.map((set) => set[facet]))];
    const options = values.map((value) => el("option", { value }, seen(value)));
    const select = el("select", { id: `explorer-${facet}` }, ...options);
    select.addEventListener("change", () => {
      // Of the sets with this value the one that agrees with most of the other choices.
      const agreement = (set) => FACETS.filter((other) => set[other] === state.set[other]).length;
      const found = data.sets.filter((set) => set[facet] === select.value);
      const best = found.reduce((a, b) => (agreement(b) > agreement(a) ? b : a));
      show({ set: best, shown: PAGE });
    });
    return select;
  });

  const radios = ["all", ...Object.keys(VERDICTS)].map((verdict) => {
    const radio = el("input", { type: "radio", name: "explorer-verdict", value: verdict });
    radio.addEventListener("change", () => show({ verdict, shown: PAGE }));
    const count = el("span.count");
    const label = el("label", radio, el("span", VERDICTS[verdict] || "All", " ", count));
    return { verdict, radio, count, label };
  });

  const search = el("input", { type: "search", placeholder: "problem, token, answer" });
  search.id = "explorer-search";
  search.autocomplete = "off";
  search.addEventListener("input", () => show({ query: search.value.toLowerCase(), shown: PAGE }));

  const status = el("p.status", { role: "status" });
  const note = el("p.note");
  const legends = el("div.legends");
  const list = el("div.answers");
  const more = el("button.button", { type: "button" });
  more.addEventListener("click", () => {
    const first = list.children.length;
    show({ shown: state.shown + PAGE });
    // The button may be gone, and with it the place of the keyboard.
    list.children[first].tabIndex = -1;
    list.children[first].focus({ preventScroll: true });
  });

  function show(change) {
    const before = legends.children.length ? state.set : null;
    Object.assign(state, change);
    const { set } = state;
    if (!of(set, state.verdict).length) state.verdict = "all";
    selects.forEach((select, i) => (select.value = set[FACETS[i]]));
    for (const { verdict, radio, count, label } of radios) {
      const n = of(set, verdict).length;
      count.textContent = number(n);
      radio.checked = verdict === state.verdict;
      radio.disabled = !n;
      label.hidden = verdict === "unjudged" && !n;
    }
    const found = of(set, state.verdict).filter(matches);
    const shown = found.slice(0, state.shown);
    list.replaceChildren(...shown.map((row) => card(set, row)));
    const kind = state.verdict === "all" ? "" : `${state.verdict} `;
    const searched = state.query ? " with the searched text" : "";
    const counted = `${number(shown.length)} of ${number(found.length)}`;
    status.textContent = `Shown: ${counted} ${kind}answers${searched}.`;
    more.hidden = shown.length === found.length;
    more.textContent = `Show ${number(Math.min(PAGE, found.length - shown.length))} more`;
    note.textContent = leftOut(set);
    if (set !== before)
      legends.replaceChildren(...legend(set), ...(set.codes.length ? [key()] : []));
  }

  const field = (name, control) =>
    el("div.field", el("label", { htmlFor: control.id }, name), control);
  const { rows, text_chars: chars, trace_tokens: tokens } = data.limits;
  const limits =
    `The page holds at most ${number(rows)} answers, right and wrong ones in turns, of each text ` +
    `${number(chars)} characters and of each trace ${number(tokens)} tokens; what is cut says so.`;
  const without = data.without.join("; ");
  document
    .getElementById("explorer")
    .replaceChildren(
      el(
        "div.controls",
        ...["Model", "Mode", "Benchmark"].map((name, i) => field(name, selects[i])),
        el("fieldset", el("legend", "Answers"), el("div", ...radios.map(({ label }) => label))),
        field("Search", search),
      ),
      legends,
      status,
      note,
      list,
      more,
      el("p.note", limits),
      ...(without ? [el("p.note", "Without traces, and so not here: ", own(without))] : []),
    );
  show({});
})();
