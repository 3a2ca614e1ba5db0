"use strict";
// Tables: a header's button sorts the rows by its column, upwards, then downwards.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const upwards = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
    };
    const empty = (one) => ["", "–missing", "n/a"].includes(one);
    const compare = (one, two) =>
      typeof one === "number" && typeof two === "number" ? one - two : String(one).localeCompare(String(two), undefined, { numeric: true });
    const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
    rows.sort(([one], [two]) => empty(one) - empty(two) || (upwards ? 1 : -1) * compare(one, two));
    for (const [, row] of rows) {
      row.classList.remove("block", "ruled");
      table.tBodies[0].append(row);
    }
  }));
}
// Paper shows everything: folded parts open for printing, and fold again.
const opened = [];
const unfold = () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    opened.push(part);
  }
};
const fold = () => opened.splice(0).forEach((part) => { part.open = false; });
window.addEventListener("beforeprint", unfold);
window.addEventListener("afterprint", fold);
