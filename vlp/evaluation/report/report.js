// Values under the pointer. The page is complete without this script.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);

  const number = (value, unit) => {
    if (unit === "percent") return (100 * value).toFixed(1) + " %";
    if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(2);
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  };

  for (const chart of document.querySelectorAll("svg[data-hover]")) {
    const { x, y, frame, label, unit, lines } = JSON.parse(chart.dataset.hover);
    const [left, top, right, bottom] = frame;
    const place = (point) => [
      left + ((point[0] - x[0]) / (x[1] - x[0])) * (right - left),
      bottom - ((point[1] - y[0]) / (y[1] - y[0])) * (bottom - top),
    ];
    const add = (name, attributes) => {
      const element = document.createElementNS(chart.namespaceURI, name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      chart.append(element);
      return element;
    };
    const cursor = add("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    const dots = lines.map(([, colour]) => add("circle", { class: "c" + colour, r: 3.2, visibility: "hidden" }));

    const show = (event) => {
      const box = chart.getBoundingClientRect();
      const across = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
      const wanted = x[0] + ((across - left) / (right - left)) * (x[1] - x[0]);
      const nearest = lines.map(([, , points]) =>
        points.reduce((best, point) => (Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted) ? point : best)),
      );
      const at = nearest.reduce((best, point) => (Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted) ? point : best));
      const column = place(at)[0];
      cursor.setAttribute("x1", column);
      cursor.setAttribute("x2", column);
      cursor.setAttribute("visibility", "visible");
      const head = document.createElement("span");
      head.textContent = label + " " + number(at[0], "number");
      tip.replaceChildren(head);
      lines.forEach(([name, colour], i) => {
        const [cx, cy] = place(nearest[i]);
        dots[i].setAttribute("cx", cx);
        dots[i].setAttribute("cy", cy);
        dots[i].setAttribute("visibility", "visible");
        const row = document.createElement("div");
        const swatch = document.createElement("span");
        swatch.className = "swatch c" + colour;
        const value = document.createElement("b");
        value.textContent = number(nearest[i][1], unit);
        row.append(swatch, name, value);
        tip.append(row);
      });
      tip.hidden = false;
      const room = tip.getBoundingClientRect();
      const beside = event.clientX + 16 + room.width < innerWidth ? event.clientX + 16 : event.clientX - room.width - 16;
      tip.style.left = Math.max(4, beside) + "px";
      tip.style.top = Math.max(4, Math.min(event.clientY + 16, innerHeight - room.height - 4)) + "px";
    };
    const hide = () => {
      tip.hidden = true;
      for (const element of [cursor, ...dots]) element.setAttribute("visibility", "hidden");
    };
    chart.addEventListener("pointermove", show);
    chart.addEventListener("pointerdown", show);
    chart.addEventListener("pointerleave", hide);
  }
})();
