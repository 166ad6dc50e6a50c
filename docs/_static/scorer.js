/* SPDX-License-Identifier: Apache-2.0 */

/* What a search shows first: answers and tasks before the inside of things. */
const PLACES = [
  [/^faq/, 9],
  [/^(howto\/|lag-policy|start)/, 8],
  [/^(tour|bridge|reference\/errors)/, 6],
  [/^(reference\/|where-it-runs|guarantees)/, 4],
  [/^(design|protocol|performance|security|comparison)/, 0],
  [/^(project\/|coverage|endurance)/, -4],
];

var Scorer = {
  score: ([name, , , , score]) => {
    const place = PLACES.find(([pattern]) => pattern.test(name));
    return score + (place ? place[1] : 0);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
