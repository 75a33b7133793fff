// Tables that are wider than their box say so: a phone shows no scrollbar.
"use strict";
(() => {
  const boxes = [...document.querySelectorAll(".scroll")];
  const mark = () => {
    const wider = boxes.map((box) => box.scrollWidth > box.clientWidth + 1);
    boxes.forEach((box, index) => box.toggleAttribute("data-wider", wider[index]));
  };
  addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true); // what was folded away had no width
  mark();
})();
