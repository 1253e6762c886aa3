// Objects of KEDA, Argo Rollouts and the Prometheus operator against their schemas.
//
// `node crds.mjs NODE_MODULES < objects.json` prints a line for each mistake: the object, the place in it, and
// what is wrong. The schemas are compiled, and let unknown keys pass. But what they know of an object they
// read from it; so a key that nobody asked for is unknown.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const SCHEMAS = {
  "keda.sh/v1alpha1": "keda/_schemas/ComGithubKedacoreKedaV2ApisKedaV1alpha1",
  "argoproj.io/v1alpha1":
    "argo-rollouts/_schemas/ComGithubArgoprojArgoRolloutsPkgApisRolloutsV1alpha1",
  "monitoring.coreos.com/v1":
    "prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1",
};

/** The value, noting in `asked` (place -> keys, or "all" where they were enumerated) what is read of it. */
function watched(value, place, asked) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map((each, i) => watched(each, `${place}/${i}`, asked));
  return new Proxy(value, {
    get(target, key) {
      if (asked.get(place) !== "all") asked.set(place, (asked.get(place) ?? new Set()).add(key));
      return watched(target[key], `${place}/${String(key)}`, asked);
    },
    ownKeys(target) {
      asked.set(place, "all");
      return Reflect.ownKeys(target);
    },
  });
}

function* unknown(value, place, asked) {
  if (value === null || typeof value !== "object") return;
  const keys = Array.isArray(value) ? "all" : asked.get(place);
  if (keys === undefined) return; // nothing of it was read: the schema lets it be anything
  for (const [key, inner] of Object.entries(value)) {
    if (keys === "all" || keys.has(key)) yield* unknown(inner, `${place}/${key}`, asked);
    else yield `${place}/${key}: no such field`;
  }
}

async function* mistakes(object, modules) {
  const prefix = SCHEMAS[object.apiVersion];
  if (!prefix) return yield `no schema of ${object.apiVersion} is at hand`;
  const file = pathToFileURL(`${modules}/@kubernetes-models/${prefix}${object.kind}.js`);
  const { validate } = await import(file);
  const asked = new Map();
  if (!validate(watched(object, "", asked))) {
    for (const error of validate.errors)
      yield `${error.instancePath || "/"}: ${error.keyword} ${JSON.stringify(error.params)}`;
  }
  yield* unknown(object, "", asked);
}

for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  for await (const mistake of mistakes(object, process.argv[2]))
    console.log(`${object.kind} ${object.metadata?.name}: ${mistake}`);
}
