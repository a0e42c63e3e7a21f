"use strict";
// Draws the figures in the page's colours, puts names where there is room for them, and sorts tables.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const pencil = document.createElement("canvas").getContext("2d");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const inked = (value, ink) =>
    value === "ink" ? ink
      : Array.isArray(value) ? value.map((one) => inked(one, ink))
        : value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([key, one]) => [key, inked(one, ink)]))
          : value;
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const shortened = (text) => (text.length > 22 ? text.slice(0, 21) + "…" : text);
  const font = () => ({ family: getComputedStyle(document.body).fontFamily, color: colour("--ink"), size: 12 });

  function layout(figure) {
    const axis = (given) => ({
      ...given, automargin: true, gridcolor: colour("--line"), linecolor: colour("--muted"), zeroline: false,
      ticks: "outside", tickcolor: colour("--line"), title: { ...given.title, standoff: 10 }, fixedrange: false,
    });
    return {
      xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis), font: font(), showlegend: false, hovermode: "closest",
      margin: { l: 50, r: 16, t: 16, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { align: "left", bgcolor: colour("--panel"), bordercolor: colour("--muted"), font: font() },
    };
  }

  const overlap = (one, other) => one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;

  // Greedy: the most telling points first, each at the first of eight places that covers nothing.
  function label(plot, figure) {
    const { xaxis, yaxis } = plot._fullLayout;
    const room = { left: 2, top: 2, right: xaxis._length - 2, bottom: yaxis._length - 2 };
    const at = (one) => ({ x: xaxis.d2p(one.x), y: yaxis.d2p(one.y) });
    const taken = figure.labels.map(at).map(({ x, y }) => ({ left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 }));
    for (const trace of figure.data) {
      (trace.error_x ? trace.x : []).forEach((x, place) => {
        const [y, across, up] = [trace.y[place], trace.error_x, trace.error_y];
        const bar = (left, right, top, bottom) => taken.push({ left, right, top, bottom });
        const [px, py] = [xaxis.d2p(x), yaxis.d2p(y)];
        bar(xaxis.d2p(x - across.arrayminus[place]), xaxis.d2p(x + across.array[place]), py - 1, py + 1);
        bar(px - 2, px + 2, yaxis.d2p(y + up.array[place]), yaxis.d2p(y - up.arrayminus[place]));
      });
    }
    pencil.font = `11px ${font().family}`;
    const placed = [];
    for (const one of figure.labels) {
      const text = shortened(one.text);
      const wide = pencil.measureText(text).width / 2 + 3;
      const { x, y } = at(one);
      const places = [[wide + 8, 0], [-wide - 8, 0], [0, -15], [0, 15], [wide + 4, -13], [-wide - 4, -13], [wide + 4, 13], [-wide - 4, 13]];
      for (const [right, down] of places) {
        const box = { left: x + right - wide, right: x + right + wide, top: y + down - 8, bottom: y + down + 8 };
        const inside = box.left > room.left && box.right < room.right && box.top > room.top && box.bottom < room.bottom;
        if (!inside || taken.some((other) => overlap(box, other))) continue;
        taken.push(box);
        placed.push({
          x: xaxis.type === "log" ? Math.log10(one.x) : one.x, y: yaxis.type === "log" ? Math.log10(one.y) : one.y,
          xshift: right, yshift: -down, text: escaped(text), showarrow: false, font: { size: 11, color: colour("--ink") },
        });
        break;
      }
    }
    return Plotly.relayout(plot, { annotations: placed });
  }

  const config = { responsive: false, displayModeBar: false, doubleClick: "reset" };
  async function draw() {
    for (const [place, plot] of plots.entries()) {
      const figure = figures[place];
      await Plotly.react(plot, inked(figure.data, colour("--ink")), layout(figure), config);
      await label(plot, figure);
    }
  }
  if (plots.length) {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    let waiting = 0;
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth === width) return;
      width = innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(draw, 150);
    });
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const nothing = (text) => text === "–" || text === "n/a" || text === "";
      const order = (one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        if (nothing(a) || nothing(b)) return nothing(a) - nothing(b);
        const numbers = [Number(a), Number(b)];
        return sign * (numbers.some(Number.isNaN) ? a.localeCompare(b, undefined, { numeric: true }) : numbers[0] - numbers[1]);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    }));
  }
})();
