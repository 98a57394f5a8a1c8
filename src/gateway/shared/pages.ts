import type { FastifyReply, FastifyRequest } from 'fastify'
import type { GatehouseError } from '../../base/errors.ts'

/**
 * A page for a person: status, what is wrong, what to do. Self-contained, no script.
 *
 * @param lines something to copy, shown as it is
 */
export function errorPage(
  status: number,
  title: string,
  message: string,
  cure: string,
  lines?: string,
): string {
  return page(
    title,
    `<h1>${escape(title)}</h1>
<p>${escape(message)}.</p>
<p>${escape(cure)}.</p>
${lines === undefined ? '' : `<pre>${escape(lines)}</pre>\n`}<p><small>${status} · gatehouse</small></p>`,
  )
}

/** A whole page around HTML of ours. */
export function page(title: string, body: string): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title)}</title>
<style>
body{font:17px/1.5 system-ui,sans-serif;max-width:44rem;margin:12vh auto;padding:0 1.5rem;color:#222;background:#fafafa}
h1{font-size:1.5rem;margin-bottom:.5rem}p{margin:.5rem 0}pre{overflow:auto;padding:1rem;background:#8881;font:14px/1.4 monospace}small{color:#777}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}small{color:#999}}
</style>
</head>
<body>
${body}
</body>
</html>
`
}

/** True when the client would rather have JSON: it names it in Accept and does not name HTML. */
export function wantsJSON(accept: string | undefined): boolean {
  return (
    accept !== undefined &&
    /\bapplication\/(?:[\w.-]+\+)?json\b/i.test(accept) &&
    !/\btext\/html\b/i.test(accept)
  )
}

/**
 * Answers with an error of the gateway's own: HTML for a person, JSON for a program; `lines` as in
 * {@link errorPage}. Headers an upstream answer may have left on the reply are removed, for they
 * describe another body.
 */
export async function sendError(
  request: FastifyRequest,
  reply: FastifyReply,
  status: number,
  title: string,
  error: GatehouseError,
  lines?: string,
  headers: Record<string, string> = {},
): Promise<FastifyReply> {
  endWithBody(request, reply)
  for (const name of Object.keys(reply.getHeaders())) reply.removeHeader(name)
  reply.code(status).header('cache-control', 'no-store')
  if (status >= 502) reply.header('retry-after', '10')
  reply.headers(headers)
  if (wantsJSON(request.headers.accept)) {
    return await reply.type('application/json; charset=utf-8').send({
      error: {
        status,
        code: error.code,
        message: error.message,
        cure: error.cure,
        ...(lines === undefined ? {} : { lines }),
      },
    })
  }
  return await reply
    .type('text/html; charset=utf-8')
    .send(errorPage(status, title, error.message, error.cure, lines))
}

/**
 * Over HTTP/1.1 the rest of a request's body is in the way of the next request: where there is one,
 * the connection ends with the answer, so that what is still read of it is bounded (linger.ts).
 */
function endWithBody(request: FastifyRequest, reply: FastifyReply): void {
  const { headers, raw } = request
  if (
    !raw.complete &&
    (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0)
  )
    reply.raw.shouldKeepAlive = false
}

/** Text as HTML. */
export function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}
