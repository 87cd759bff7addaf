// A receiver of webhooks as its author would write it: the raw body, the headers, and a library that verifies.
//
// POST /standardwebhooks?secret=whsec_… and /svix?secret=whsec_… verify v1 by the library of that name,
// POST /jwk?key={…} verifies v1a by Node's own cryptography and a key of the JSON Web Key Set.
// The answer is 204 if the signature is good, else 400 with what the library said. The first line on standard
// output is the port.

import { createPublicKey, verify } from "node:crypto";
import { createServer } from "node:http";
import { Webhook as StandardWebhook } from "standardwebhooks";
import { Webhook as SvixWebhook } from "svix";

const VERIFIERS = {
  "/standardwebhooks": (query, headers, body) =>
    new StandardWebhook(query.get("secret")).verify(body, headers),
  "/svix": (query, headers, body) => new SvixWebhook(query.get("secret")).verify(body, headers),
  "/jwk": (query, headers, body) => {
    const key = createPublicKey({ key: JSON.parse(query.get("key")), format: "jwk" });
    const signed = Buffer.concat([
      Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`),
      body,
    ]);
    const tokens = headers["webhook-signature"].split(" ").map((token) => token.split(","));
    const good = tokens.some(
      ([version, signature]) =>
        version === "v1a" && verify(null, signed, key, Buffer.from(signature, "base64")),
    );
    if (!good) throw new Error("No matching signature found");
  },
};

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const url = new URL(request.url, "http://receiver");
  try {
    VERIFIERS[url.pathname](url.searchParams, request.headers, Buffer.concat(chunks));
    response.writeHead(204).end();
  } catch (error) {
    response.statusCode = 400;
    response.end(String(error));
  }
});

server.listen(0, "127.0.0.1", () => console.log(server.address().port));
// It ends with the test that started it, also when that is killed.
process.stdin.on("close", () => process.exit(0)).resume();
