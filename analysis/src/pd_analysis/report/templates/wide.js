// What is wider than the screen says so, until it has been moved.
for (const box of document.querySelectorAll(".scroll")) {
  const tell = () => {
    const wide = box.scrollWidth > box.clientWidth + 4;
    box.parentElement.classList.toggle("wide", wide);
    box.parentElement.classList.toggle("wider", wide && box.scrollLeft < 8);
  };
  box.addEventListener("scroll", tell, { passive: true });
  addEventListener("resize", tell);
  tell();
  if (box.parentElement.tagName === "FIGURE") box.parentElement.dataset.hint = WORDS.hint;
}
