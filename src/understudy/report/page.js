"use strict";
// Draws every chart of the page in the colors of its style sheet, and again when the reader's light or dark changes.
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  const coarse = matchMedia("(pointer: coarse)").matches;
  const settings = { responsive: true, displayModeBar: false, doubleClick: "reset" };

  // Figures name colors as var(--name); plotly wants them resolved.
  function painted(value, style) {
    if (Array.isArray(value)) return value.map(item => painted(item, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, style)]));
    const name = typeof value === "string" && /^var\((--[a-z0-9-]+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  }

  function draw(plot) {
    const figure = painted(plot.figure, getComputedStyle(document.documentElement));
    if (coarse) figure.layout.dragmode = false; // a finger on a chart scrolls the page
    return Plotly.react(plot, figure.data, figure.layout, settings);
  }

  for (const plot of plots) {
    const source = plot.querySelector("script");
    plot.figure = JSON.parse(source.textContent);
    source.remove();
  }
  // What lies in a closed part has no size yet: it is drawn when the part is opened.
  const seen = plot => !plot.closest("details:not([open])");
  const drawn = Promise.all(plots.filter(seen).map(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.filter(seen).forEach(draw));
  for (const part of document.querySelectorAll("details"))
    part.addEventListener("toggle", () => plots.filter(plot => part.contains(plot) && seen(plot)).forEach(draw));

  // The maps have the same traces in the same order: a button steers all, and a point is found again in the others.
  const maps = plots.filter(plot => plot.classList.contains("map"));
  for (const button of document.querySelectorAll("button[data-group]")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      for (const map of maps) {
        map.figure.data[button.dataset.group].visible = shown;
        draw(map);
      }
    });
  }

  // Each map has its points in every layout.
  const layouts = [...document.querySelectorAll("button[data-layout]")];
  for (const button of layouts) {
    button.addEventListener("click", () => {
      for (const other of layouts) other.setAttribute("aria-pressed", other === button);
      for (const map of maps) {
        const { layouts: known } = map.figure.layout.meta || {};
        if (!known) continue;
        known[button.dataset.layout].forEach(([x, y], trace) => Object.assign(map.figure.data[trace], { x, y }));
        map.figure.layout.uirevision = button.dataset.layout; // another map is seen whole, whatever was zoomed in
        draw(map);
      }
    });
  }

  const peek = document.querySelector(".peek");
  const texts = peek && JSON.parse(peek.querySelector("script").textContent);
  function show(image) {
    const window = peek.querySelector(".peek-image"), side = Number(window.dataset.side), step = 100 / Math.max(1, side - 1);
    window.style.backgroundPosition = `${(image % side) * step}% ${Math.floor(image / side) * step}%`;
    window.classList.add("on");
    peek.querySelector(".peek-text").textContent = texts[image];
  }
  let echo = false;
  drawn.then(() => {
    for (const map of maps) {
      map.on("plotly_hover", event => {
        if (echo) return;
        const { curveNumber, pointNumber, customdata } = event.points[0];
        if (peek) show(customdata);
        echo = true;
        for (const other of maps) if (other !== map) Plotly.Fx.hover(other, [{ curveNumber, pointNumber }]);
        echo = false;
      });
      map.on("plotly_unhover", () => {
        if (echo) return;
        echo = true;
        for (const other of maps) if (other !== map) Plotly.Fx.unhover(other);
        echo = false;
      });
    }
    document.documentElement.dataset.drawn = plots.length;
  });
})();
