import type { FastifyInstance } from 'fastify'

/**
 * Marks a function as a Fastify plugin whose hooks and decorators hold for the whole application
 * rather than for a scope of its own
 * (https://fastify.dev/docs/latest/Reference/Plugins/#handle-the-scope), with its name for
 * Fastify's messages.
 */
export function plugin<O extends object>(
  name: string,
  register: (app: FastifyInstance, options: O) => Promise<void>,
): (app: FastifyInstance, options: O) => Promise<void> {
  return Object.assign(register, {
    [Symbol.for('skip-override')]: true,
    [Symbol.for('fastify.display-name')]: `gatehouse-${name}`,
  })
}
