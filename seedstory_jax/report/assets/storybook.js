(() => {
  const root = document.documentElement;
  const pages = [...document.querySelectorAll(".page")];
  const film = document.querySelector(".film");
  const thumbs = [...film.querySelectorAll("a")];
  const said = document.querySelector("[data-said]");
  const back = document.querySelector(".turn.back");
  const on = document.querySelector(".turn.on");
  const overview = document.querySelector("[data-overview-toggle]");
  const play = document.querySelector("[data-play]");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let now = -1;
  let clock = 0;

  const show = (place, speak) => {
    place = Math.max(0, Math.min(pages.length - 1, place));
    if (place === now) return;
    const forth = place > now;
    pages.forEach((page, i) => page.classList.toggle("open", i === place));
    pages[place].dataset.from = forth ? "right" : "left";
    thumbs.forEach((thumb, i) => {
      if (i === place) thumb.setAttribute("aria-current", "true");
      else thumb.removeAttribute("aria-current");
    });
    now = place;
    back.disabled = now === 0;
    on.disabled = now === pages.length - 1;
    const thumb = thumbs[place].parentElement;
    film.scrollTo({ left: thumb.offsetLeft - (film.clientWidth - thumb.clientWidth) / 2, behavior: still.matches ? "auto" : "smooth" });
    history.replaceState(null, "", "#" + (place + 1));
    scrollTo(0, 0);
    if (speak) said.textContent = pages[place].getAttribute("aria-label") + ". " + pages[place].querySelector(".caption").textContent;
    if (on.disabled) halt();
  };
  const grid = (open) => {
    root.classList.toggle("grid", open);
    overview.setAttribute("aria-expanded", String(open));
    if (open) { halt(); (thumbs[now] || thumbs[0]).focus(); } else scrollTo(0, 0);
  };
  const halt = () => { clearInterval(clock); clock = 0; play.setAttribute("aria-pressed", "false"); };
  const start = () => {
    if (now === pages.length - 1) show(0);
    clock = setInterval(() => show(now + 1), 3000);
    play.setAttribute("aria-pressed", "true");
  };
  const turn = (step) => { halt(); grid(false); show(now + step, true); };

  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));
  overview.addEventListener("click", () => grid(!root.classList.contains("grid")));
  play.addEventListener("click", () => (clock ? halt() : (grid(false), start())));
  document.addEventListener("click", (e) => {
    const link = e.target.closest('a[href^="#"]');
    if (!link) return;
    e.preventDefault();
    halt();
    grid(false);
    show(Number(link.getAttribute("href").slice(1)) - 1, true);
  });
  addEventListener("hashchange", () => show(Number(location.hash.slice(1)) - 1));
  addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const keys = {
      ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), PageDown: () => turn(1), PageUp: () => turn(-1),
      Home: () => { halt(); grid(false); show(0, true); },
      End: () => { halt(); grid(false); show(pages.length - 1, true); },
      Escape: () => grid(false), o: () => grid(!root.classList.contains("grid")), p: () => play.click(),
    };
    if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
  });
  let from = null;
  const leaves = document.querySelector(".leaves");
  leaves.addEventListener("touchstart", (e) => {
    from = e.touches.length === 1 ? { x: e.touches[0].clientX, y: e.touches[0].clientY } : null;
  }, { passive: true });
  leaves.addEventListener("touchend", (e) => {
    if (!from) return;
    const dx = e.changedTouches[0].clientX - from.x;
    const dy = e.changedTouches[0].clientY - from.y;
    if (Math.abs(dx) > 40 && Math.abs(dx) > 1.5 * Math.abs(dy)) turn(dx < 0 ? 1 : -1);
    from = null;
  }, { passive: true });
  history.scrollRestoration = "manual";
  pages.forEach((page) => page.removeAttribute("id")); // or the browser scrolls the picture's top out of sight
  show((Number(location.hash.slice(1)) || 1) - 1);
})();
