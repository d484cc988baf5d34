(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  if (stored()) root.dataset.theme = stored();
  const flip = () => {
    const next = (root.dataset.theme || (dark() ? "dark" : "light")) === "dark" ? "light" : "dark";
    root.dataset.theme = next;
    try { localStorage.setItem("theme", next); } catch { /* a page opened from disk may have no storage */ }
  };
  document.querySelectorAll("[data-theme-toggle]").forEach((b) => b.addEventListener("click", flip));
  addEventListener("keydown", (e) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName || "");
    if (e.key === "t" && !e.ctrlKey && !e.metaKey && !e.altKey && !typing) flip();
  });
})();
