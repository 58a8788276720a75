// Heads become buttons that sort the rows by what their cells' data-order says, else by text; what says nothing stays
// last. What stands in a foot is no row.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const isNumber = head.className === "number";
      const key = (row) => isNumber ? row.cells[column].dataset.order : row.cells[column].textContent || undefined;
      body.append(...[...body.rows].sort((one, two) => {
        const [a, b] = [key(one), key(two)];
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
        return sign * (isNumber ? a - b : a.localeCompare(b, "en", {numeric: true}));
      }));
    };
  });
}
