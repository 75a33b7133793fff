// Draws the figures of the exact benchmark.
"use strict";
page.drawInTurn(page.data("figure-data"), page.drawFigure);
