// How long llama.cpp takes for a prompt of 512 tokens and for a token of each of ROWS sequences, greedily.
// Arguments: folder of node_modules with node-llama-cpp, GGUF file, threads, rows, tokens. Writes a JSON line.
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, path, threads, rows, count] = process.argv.slice(2);
const { getLlama } = await import(pathToFileURL(join(folder, "node-llama-cpp/dist/index.js")));
const llama = await getLlama({ gpu: false, build: "never", maxThreads: +threads, logLevel: "error" });
const model = await llama.loadModel({ modelPath: path });
const context = await model.createContext({ contextSize: 1024, batchSize: 512, threads: +threads, sequences: +rows });
const sequences = Array.from({ length: +rows }, () => context.getSequence());
const prompt = Array.from({ length: 512 }, (_, i) => 100 + ((i * 37) % 2000));
const greedy = { generateNext: { token: true, options: { temperature: 0 } } };

/** The token that follows `tokens` in a sequence. */
async function next(sequence, tokens) {
  const input = [...tokens.slice(0, -1), [tokens.at(-1), greedy]];
  return (await sequence.controlledEvaluate(input)).at(-1).next.token;
}

async function timed(work) {
  const start = performance.now();
  const result = await work();
  return [performance.now() - start, result];
}

const [prefill] = await timed(() => next(sequences[0], prompt));
await sequences[0].clearHistory();
let last = await Promise.all(sequences.map((each, i) => next(each, [...prompt.slice(0, 31), 200 + i])));
const steps = [];
while (steps.length < +count) {
  const [took, tokens] = await timed(() => Promise.all(sequences.map((each, i) => next(each, [last[i]]))));
  steps.push(took);
  last = tokens;
}
steps.sort((a, b) => a - b);
process.stdout.write(JSON.stringify({ step: steps[steps.length >> 1], prefill }) + "\n");
process.exit(0);
