/**
 * What the bundle has of undici: the parts of its main module that the program and
 * @fastify/reply-from name. The rest (fetch, WebSocket, caches, mocks, proxies) cannot be told by
 * the bundler to be of no use, and would be 10 MB of the gateway's memory.
 *
 * Only tools/options.ts names this file; the sources import `undici`.
 */
module.exports = {
  Agent: require('../node_modules/undici/lib/dispatcher/agent.js'),
  BalancedPool: require('../node_modules/undici/lib/dispatcher/balanced-pool.js'),
  Client: require('../node_modules/undici/lib/dispatcher/client.js'),
  Dispatcher: require('../node_modules/undici/lib/dispatcher/dispatcher.js'),
  Pool: require('../node_modules/undici/lib/dispatcher/pool.js'),
  buildConnector: require('../node_modules/undici/lib/core/connect.js'),
}
