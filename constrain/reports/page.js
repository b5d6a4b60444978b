"use strict";
// A slider for every computed path: its texts are those of the solves, its line in the charts marks the place.
for (const panel of document.querySelectorAll(".whatif")) {
  const data = JSON.parse(panel.querySelector("script").textContent);
  const slider = panel.querySelector("input");
  const first = data.places[0];
  const span = data.places[data.places.length - 1] - first;
  const cursors = Array.from(panel.querySelectorAll("svg.chart"), (chart) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", "cursor");
    line.setAttribute("y1", "10");
    line.setAttribute("y2", "160");
    chart.append(line);
    return line;
  });
  const show = () => {
    const place = Number(slider.value);
    for (const target of panel.querySelectorAll("[data-show]")) {
      target.textContent = data.texts[target.dataset.show][place];
    }
    const x = 58 + 312 * ((data.places[place] - first) / span);
    for (const line of cursors) {
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
    slider.setAttribute("aria-valuetext", data.texts.parameter[place]);
  };
  panel.querySelector(".slider").hidden = false;
  slider.addEventListener("input", show);
  show();
}
