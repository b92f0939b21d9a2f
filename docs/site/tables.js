// On a phone a table of many columns becomes a card for each row (style.css), in which each cell
// states its column.
for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
  if (names.length < 3) continue;
  table.dataset.stacked = "";
  if (names.length > 5) table.dataset.many = "";
  if (names.length > 9) table.dataset.verymany = "";
  for (const row of table.querySelectorAll("tbody tr"))
    [...row.children].forEach((cell, column) => (cell.dataset.column = names[column] || ""));
}
