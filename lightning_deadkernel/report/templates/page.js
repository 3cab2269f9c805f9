// Tables sort by a click on a heading, and long ones have a filter; a kernel under the pointer says what it is. Without
// this script the page is as complete.
for (const table of document.querySelectorAll(".deadkernel table")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/[<>,]/g, ""));
    return headings[column].classList.contains("right") ? (isNaN(number) ? null : number) : text;
  };
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.classList.contains("right") ? heading.dataset.order !== "descending" : heading.dataset.order === "ascending";
      headings.forEach((other) => { delete other.dataset.order; other.removeAttribute("aria-sort"); });
      heading.dataset.order = down ? "descending" : "ascending";
      heading.setAttribute("aria-sort", heading.dataset.order);
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
  if (body.rows.length > 10) {
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = "filter rows";
    input.setAttribute("aria-label", "filter rows");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    table.parentElement.before(input);
  }
}
for (const map of document.querySelectorAll(".deadkernel .map")) {
  const per = Number(map.dataset.per);
  const names = JSON.parse(map.parentElement.querySelector("[data-names]").dataset.names);
  for (const strip of map.querySelectorAll(".strip")) {
    const svg = strip.querySelector("svg"), text = strip.querySelector(".soft"), whole = text.textContent;
    const cells = atob(strip.dataset.cells), measures = strip.dataset.measures.split("|").filter(Boolean).map((line) => line.split(";"));
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), { width: columns, height: rows } = svg.viewBox.baseVal;
      const column = Math.floor((event.clientX - box.left) / box.width * columns);
      const kernel = Math.floor((event.clientY - box.top) / box.height * rows) * columns + column;
      if (column < 0 || column >= columns || !(kernel < cells.length)) return;
      const measured = measures.map(([title, ...values]) => `, ${title} ${values[kernel]}`).join("");
      const which = per === 1 ? `kernel ${kernel}` : `worst of kernels from ${kernel * per} on`;
      text.textContent = `${which}: ${names[cells.charCodeAt(kernel)]}${measured}`;
    });
    svg.addEventListener("pointerleave", () => { text.textContent = whole; });
  }
}
