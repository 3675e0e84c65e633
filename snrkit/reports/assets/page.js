"use strict";
(() => {
  const root = document.documentElement, tip = document.getElementById("tip"), said = document.getElementById("said");
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  root.classList.add("js");

  // light and dark
  const theme = document.querySelector(".theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const tell = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; tell(); });
  dark.addEventListener("change", tell);
  tell();

  // the one box for what is said on hover and focus
  function show(lines, x, y) {
    tip.replaceChildren(...lines.map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      return row;
    }));
    tip.hidden = false;
    const left = Math.min(Math.max(8, x + 14), root.clientWidth - tip.offsetWidth - 8);
    const above = y - tip.offsetHeight - 12;
    tip.style.left = `${scrollX + Math.max(0, left)}px`;
    tip.style.top = `${scrollY + (above > 4 ? above : y + 18)}px`;
  }
  let held = null;
  function hide() { tip.hidden = true; held = null; all(".dot.on").forEach((dot) => dot.classList.remove("on")); }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  for (const term of all(".term")) {
    const meaning = document.getElementById(term.getAttribute("aria-describedby"));
    const open = () => { const at = term.getBoundingClientRect(); show([meaning.textContent], at.left, at.top); };
    term.addEventListener("mouseenter", open);
    term.addEventListener("focus", open);
    term.addEventListener("mouseleave", hide);
    term.addEventListener("blur", hide);
  }

  // figures answer to the pointer and to the arrow keys
  const visible = (svg) => all("g[data-name]:not(.off)", svg);
  const place = (dot) => ({x: Number(dot.dataset.x), y: Number(dot.dataset.y)});
  function nearest(svg, x, y) {
    const kind = svg.dataset.hover;
    const far = (dot) => {
      const at = place(dot);
      return kind === "x" ? Math.abs(at.x - x) : kind === "y" ? Math.abs(at.y - y) : Math.hypot(at.x - x, at.y - y);
    };
    const best = (dots) => dots.reduce((a, b) => (far(b) < far(a) ? b : a));
    const groups = visible(svg).map((group) => all(".dot", group)).filter((dots) => dots.length);
    if (!groups.length) return [];
    const winner = best(groups.map(best));
    if (kind !== "x") return [winner];
    return groups.map(best).filter((dot) => Math.abs(place(dot).x - place(winner).x) < 12);
  }
  function point(svg, dots) {
    hide();
    if (!dots.length) return;
    held = dots[0];
    dots.forEach((dot) => dot.classList.add("on"));
    const alike = dots.every((dot) => dot.dataset.head === dots[0].dataset.head);
    const name = (dot) => dot.parentNode.dataset.name;
    const lines = svg.dataset.hover === "y" ? [dots[0].dataset.head, dots[0].dataset.tip] : [
      ...(alike ? [dots[0].dataset.head] : []),
      ...dots.map((dot) => `${name(dot)}: ${dot.dataset.tip}${alike ? "" : ` (${dot.dataset.head})`}`),
    ];
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width, at = place(dots[0]);
    show(lines, box.left + at.x * scale, box.top + Math.min(...dots.map((dot) => place(dot).y)) * scale);
    said.textContent = lines.join("; ");
  }
  for (const svg of all("svg[data-hover]")) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      point(svg, nearest(svg, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale));
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      const axis = svg.dataset.hover === "y" ? "y" : "x";
      const dots = visible(svg).flatMap((group) => all(".dot", group));
      const along = svg.dataset.hover === "x" ? [...new Map(dots.map((dot) => [dot.dataset.x, dot])).values()] : dots;
      along.sort((a, b) => place(a)[axis] - place(b)[axis]);
      const now = along.findIndex((dot) => dot === held || (held && svg.dataset.hover === "x" &&
        dot.dataset.x === held.dataset.x));
      const next = now < 0 ? (step > 0 ? 0 : along.length - 1) : Math.min(along.length - 1, Math.max(0, now + step));
      if (along[next]) {
        const at = place(along[next]);
        point(svg, svg.dataset.hover === "x" ? nearest(svg, at.x, at.y) : [along[next]]);
      }
    });
  }

  // a legend hides a sampler in every figure
  for (const button of all("[data-toggle]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.toggle, on = button.getAttribute("aria-pressed") !== "true";
      all(`[data-toggle="${key}"]`).forEach((one) => one.setAttribute("aria-pressed", String(on)));
      all(`[data-series="${key}"]`).forEach((group) => group.classList.toggle("off", !on));
    });
  }

  // the same seeds in the same places: choose, or click to go on to the next
  for (const flip of all(".flip")) {
    const choices = all("input", flip), images = all(".stack img", flip);
    const turn = (to) => {
      choices[to].checked = true;
      images.forEach((image, index) => image.classList.toggle("on", index === to));
    };
    choices.forEach((choice, index) => choice.addEventListener("change", () => turn(index)));
    images.forEach((image, index) => image.addEventListener("click", () => turn((index + 1) % images.length)));
    turn(Math.max(0, choices.findIndex((choice) => choice.checked)));
  }

  // tables sort by a click on the header: numbers by size, what is absent last
  const text = (cell) => cell.dataset.text ?? cell.textContent.trim();
  const number = (value) => {
    const found = value.replace(/\u2212/g, "-").replace(/,(?=\d{3})/g, "").match(/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?/i);
    return found ? Number(found[0]) : null;
  };
  function order(a, b, sign) {
    const absent = (value) => value === "" || value === "-";
    if (absent(a) || absent(b)) return absent(a) - absent(b);
    const [x, y] = [number(a), number(b)];
    if (x !== null && y !== null && x !== y) return sign * (x - y);
    return sign * a.localeCompare(b, "en", {numeric: true});
  }
  for (const table of all("table")) {
    all("thead th", table).forEach((head, column) => {
      head.dataset.text = head.textContent.trim();
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "↕";
      button.setAttribute("aria-label", `Sort by ${text(head) || "this column"}`);
      head.append(" ", button);
      head.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
        all("th[aria-sort]", table).forEach((other) => {
          other.removeAttribute("aria-sort");
          other.querySelector("button").textContent = "↕";
        });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        button.textContent = up ? "↑" : "↓";
        const rows = [...body.rows];
        rows.sort((a, b) => order(text(a.cells[column]), text(b.cells[column]), up ? 1 : -1));
        body.append(...rows);
      });
    });
  }

  // files of tables and figures
  function save(name, type, content) {
    const link = document.createElement("a"), parts = content instanceof Blob ? content : new Blob([content], {type});
    link.href = URL.createObjectURL(parts);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  const file = (holder, suffix) => `${(holder.dataset.name || "snrkit").replace(/[^\w.-]+/g, "-")}.${suffix}`;
  const cells = (table) => [...table.rows].map((row) => [...row.cells].map(text));
  // a spreadsheet runs what begins as a formula and is no number (or several, as with an interval): ' makes it a text
  const one = "[-+]?(\\d+(,\\d{3})*(\\.\\d*)?|\\.\\d+|∞)(e[-+]?\\d+)?%?";
  const numbers = new RegExp(`^(-|${one}(,?[\\s±[\\]]+${one})*\\]?)$`, "i");
  const inert = (cell) => (/^[=+\-@\t\r]/.test(cell) && !numbers.test(cell) ? `'${cell}` : cell);
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replace(/"/g, '""')}"` : cell);
  const special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\u2212": "$-$",
    "∞": "$\\infty$"};
  const latex = (cell) => cell.replace(/[\\~^\u2212∞&%$#_{}]/g, (c) => special[c] ?? `\\${c}`);
  const tables = {
    csv: (rows) => "\ufeff" + rows.map((row) => row.map(inert).map(quoted).join(",") + "\r\n").join(""),
    tex: ([head, ...rows]) => [`\\begin{tabular}{${"l".repeat(head.length)}}`, "\\toprule",
      `${head.map(latex).join(" & ")} \\\\`, "\\midrule", ...rows.map((row) => `${row.map(latex).join(" & ")} \\\\`),
      "\\bottomrule", "\\end{tabular}", ""].join("\n"),
  };
  for (const button of all("[data-table]")) {
    button.addEventListener("click", () => {
      const holder = button.closest(".table"), kind = button.dataset.table;
      save(file(holder, kind), kind === "csv" ? "text/csv" : "text/plain", tables[kind](cells(holder.querySelector("table"))));
    });
  }
  const LOOKS = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "paint-order", "font", "text-anchor"];
  function standalone(figure) {
    const svg = all(".canvas svg", figure).find((one) => getComputedStyle(one).display !== "none");
    const copy = svg.cloneNode(true), from = all("*", svg), box = svg.viewBox.baseVal, hidden = [];
    const dress = (node, as) => {
      const look = getComputedStyle(as);
      LOOKS.forEach((name) => node.style.setProperty(name, look.getPropertyValue(name)));
      [...Object.keys(node.dataset)].forEach((extra) => delete node.dataset[extra]);
      node.removeAttribute("class");
      return node;
    };
    all("*", copy).forEach((node, i) => {
      if (from[i].classList.contains("off")) hidden.push(node);
      dress(node, from[i]);
    });
    hidden.forEach((node) => node.remove());
    const names = visible(svg).filter((group) => group.dataset.series), line = 18;
    const height = box.height + 32 + line * names.length;
    const make = (tag, attributes, content = "") => {
      const node = document.createElementNS(svg.namespaceURI, tag);
      Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
      node.textContent = content;
      return node;
    };
    const ink = getComputedStyle(root).getPropertyValue("--ink"), font = getComputedStyle(svg.querySelector("text")).font;
    const inner = make("g", {transform: "translate(0 24)"});
    inner.append(...copy.childNodes);
    const written = (x, y, content, weight) => make("text", {x, y, style: `font:${font};font-weight:${weight};fill:${ink}`}, content);
    copy.append(make("rect", {width: box.width, height, fill: getComputedStyle(document.body).backgroundColor}),
      written(4, 16, figure.querySelector("h3").textContent, 600), inner);
    names.forEach((group, i) => {
      const y = box.height + 24 + line * i + 6, sample = make("g", {transform: `translate(14 ${y - 6})`});
      const swatch = figure.querySelector(`[data-toggle="${group.dataset.series}"] .swatch`);
      sample.append(...[...swatch.children].map((part) => dress(part.cloneNode(), part)));
      copy.append(sample, written(48, y + 4, group.dataset.name, 400));
    });
    copy.setAttribute("viewBox", `0 0 ${box.width} ${height}`);
    copy.setAttribute("width", box.width);
    copy.setAttribute("height", height);
    ["class", "tabindex", "data-hover"].forEach((name) => copy.removeAttribute(name));
    return {source: new XMLSerializer().serializeToString(copy), width: box.width, height};
  }
  function raster({source, width, height}, done) {
    const image = new Image(), canvas = document.createElement("canvas"), scale = 3;
    image.onload = () => {
      canvas.width = width * scale;
      canvas.height = height * scale;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(done, "image/png");
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
  }
  for (const button of all("[data-figure]")) {
    button.addEventListener("click", () => {
      const figure = button.closest(".plot"), drawn = standalone(figure);
      if (button.dataset.figure === "svg") save(file(figure, "svg"), "image/svg+xml", drawn.source);
      else raster(drawn, (content) => save(file(figure, "png"), "image/png", content));
    });
  }
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", () => {
      const pre = button.closest(".code").querySelector("pre"), done = () => { button.textContent = "Copied"; };
      const select = () => getSelection().selectAllChildren(pre);
      if (navigator.clipboard) navigator.clipboard.writeText(pre.textContent).then(done, select);
      else select();
    });
  }
})();
