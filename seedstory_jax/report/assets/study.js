(() => {
  const study = document.getElementById("study");
  const pairs = [...document.querySelectorAll(".pair")];
  const perPair = Number(study.dataset.questions);
  const shelf = "study:" + study.dataset.study;
  const button = (name) => study.querySelector("[data-" + name + "]");
  const fresh = () => {
    // Every person sees the pairs in an order of their own.
    const order = pairs.map((pair) => pair.dataset.pair);
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    const letters = crypto.getRandomValues(new Uint8Array(8));
    return { person: [...letters].map((b) => b.toString(16).padStart(2, "0")).join(""), order, at: 0, answers: {} };
  };
  let state = null;
  try { state = JSON.parse(localStorage.getItem(shelf)); } catch { /* no storage, or no JSON in it */ }
  const known = pairs.map((pair) => pair.dataset.pair).sort().join();
  if (!state || !Array.isArray(state.order) || [...state.order].sort().join() !== known) state = fresh();
  const keep = () => { try { localStorage.setItem(shelf, JSON.stringify(state)); } catch { /* kept in the page alone */ } };
  const answered = (number) => Object.keys(state.answers[number] || {}).length === perPair;

  const show = () => {
    const number = state.order[state.at];
    pairs.forEach((pair) => pair.classList.toggle("open", pair.dataset.pair === number));
    const done = state.order.filter(answered).length;
    study.querySelector("[data-progress]").textContent = `Pair ${state.at + 1} of ${pairs.length}, ${done} answered`;
    button("back").disabled = state.at === 0;
    button("next").disabled = state.at === pairs.length - 1 || !answered(number);
    button("export").disabled = done === 0;
    button("export").classList.toggle("ready", done === pairs.length);
  };
  const restore = () => {
    study.querySelectorAll("input").forEach((input) => {
      const [number, question] = [input.closest(".pair").dataset.pair, input.closest("fieldset").dataset.question];
      input.checked = (state.answers[number] || {})[question] === input.value;
    });
  };
  study.addEventListener("change", (e) => {
    const number = e.target.closest(".pair").dataset.pair;
    (state.answers[number] ||= {})[e.target.closest("fieldset").dataset.question] = e.target.value;
    keep();
    show();
  });
  const step = (by) => { state.at = Math.max(0, Math.min(pairs.length - 1, state.at + by)); keep(); show(); scrollTo(0, 0); };
  button("back").addEventListener("click", () => step(-1));
  button("next").addEventListener("click", () => step(1));
  const text = () => JSON.stringify({ study: study.dataset.study, person: state.person, answers: state.answers }, null, 1);
  button("export").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text()], { type: "application/json" }));
    link.download = `answers-${state.person}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  button("forget").addEventListener("click", () => {
    if (!confirm("Forget all answers in this browser?")) return;
    state = fresh();
    keep();
    restore();
    show();
  });
  restore();
  keep();
  show();
})();
