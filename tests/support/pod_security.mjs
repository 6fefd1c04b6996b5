// Which of Monokle's Pod Security rules each list of Kubernetes objects breaks: lists of objects as JSON in, lists of rule ids out.
// PSS1… are rules of the baseline level, PSS2… further ones of the restricted level. The first argument is the folder with node_modules.
import { createRequire } from 'node:module';
import { text } from 'node:stream/consumers';
import { pathToFileURL } from 'node:url';

const resolve = createRequire(`${process.argv[2]}/`).resolve;
const { createDefaultMonokleValidator } = await import(pathToFileURL(resolve('@monokle/validation')));

const validator = createDefaultMonokleValidator();
const plugins = { 'pod-security-standards': true };
await validator.preload({ plugins });
// Those of the restricted level are off unless asked for.
const names = validator.rules['pod-security-standards'].map((rule) => `pod-security-standards/${rule.name}`);
await validator.preload({ plugins, rules: Object.fromEntries(names.map((name) => [name, 'err'])) });

const resource = (content, index) => ({
  id: String(index),
  fileId: String(index),
  filePath: `${index}.yaml`,
  fileOffset: 0,
  name: content.metadata.name,
  namespace: content.metadata.namespace,
  apiVersion: content.apiVersion,
  kind: content.kind,
  content,
  text: JSON.stringify(content, null, 1),
});

const answers = [];
for (const objects of JSON.parse(await text(process.stdin))) {
  const { runs } = await validator.validate({ resources: objects.map(resource) });
  answers.push([...new Set(runs.flatMap((run) => run.results.map((result) => result.ruleId)))].sort());
}
process.stdout.write(JSON.stringify({ rules: names.length, answers }));
