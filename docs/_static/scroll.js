/* What scrolls sideways can be reached and scrolled with the keyboard. */
function reachable() {
  for (const box of document.querySelectorAll("pre, .output_html, .output_png, .cell_output, .table-wrapper, .math")) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
