// Validates resources (one JSON per line on standard input) with the npm package `fhir`,
// and prints what it finds wrong, one JSON per line.
const { Fhir } = require('fhir');
const lines = require('fs').readFileSync(0, 'utf8').split('\n').filter((line) => line);
const fhir = new Fhir();
for (const line of lines) {
  const resource = JSON.parse(line);
  const found = fhir.validate(resource, { errorOnUnexpected: true });
  const wrong = found.messages.filter((message) => ['error', 'fatal', 'warning'].includes(message.severity));
  console.log(JSON.stringify({ type: resource.resourceType, valid: found.valid, wrong }));
}
