// What llama.cpp makes of a GGUF file: token ids, greedy continuations, log-probabilities. Reads a JSON request from
// standard input and writes a JSON answer. The first argument is the folder of node_modules with node-llama-cpp.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const { getLlama } = await import(pathToFileURL(join(process.argv[2], "node-llama-cpp/dist/index.js")));
const request = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({ gpu: false, build: "never", maxThreads: 1, logLevel: "error" });
const model = await llama.loadModel({ modelPath: request.model });
const answer = { tokens: request.texts.map((text) => [...model.tokenize(text, request.special)]), greedy: [], logprobs: [] };
const context = await model.createContext({ contextSize: 512, batchSize: 512, threads: 1, sequences: 1 });

/** The logits after every token of `tokens`, which follow what the sequence has read. */
async function logits(sequence, tokens) {
  const input = tokens.map((token) => [token, { generateNext: { logits: true } }]);
  return (await sequence.controlledEvaluate(input)).map((each) => each.next.logits);
}

function argmax(values) {
  let best = -1;
  let highest = -Infinity;
  for (const [token, value] of values) if (value > highest) [best, highest] = [token, value];
  return best;
}

function logprob(values, token) {
  let highest = -Infinity;
  for (const value of values.values()) highest = Math.max(highest, value);
  let sum = 0;
  for (const value of values.values()) sum += Math.exp(value - highest);
  return values.get(token) - highest - Math.log(sum);
}

for (const prompt of request.prompts) {
  const sequence = context.getSequence();
  let last = (await logits(sequence, prompt)).at(-1);
  const greedy = [];
  while (greedy.length < request.count) {
    greedy.push(argmax(last));
    if (greedy.length < request.count) [last] = await logits(sequence, greedy.slice(-1));
  }
  answer.greedy.push(greedy);
  sequence.dispose();
}
for (const text of request.scored) {
  const sequence = context.getSequence();
  const each = await logits(sequence, text.slice(0, -1));
  answer.logprobs.push(each.map((values, i) => logprob(values, text[i + 1])));
  sequence.dispose();
}
process.stdout.write(JSON.stringify(answer));
process.exit(0);
