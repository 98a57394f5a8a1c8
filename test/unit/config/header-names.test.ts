import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isOwned, ownHeader } from '../../../src/config/header-names.ts'

test("headers by which apps learn who asks, from where and for what are the gateway's, however they are spelt", () => {
  for (const name of [
    'X-Forwarded-For',
    'X-Forwarded-Anything',
    'X-Forwarded',
    'X_Forwarded-Host',
    'Forwarded',
    'Tailscale-User-Login',
    'Tailscale-Anything',
    'X-Gatehouse-User',
    'X_GATEHOUSE_ANYTHING',
    'Remote-User',
    'REMOTE_USER',
    'Remote-Groups',
    'X-Remote-User',
    'X-WebAuth-User',
    'X-WebAuth-Role',
    'X-Original-URL',
    'X-Original-Method',
    'X-Rewrite-URL',
    'True-Client-IP',
    'X-Real-IP',
    'CF-Connecting-IP',
    'X-Auth-Request-Email',
    'X-authentik-groups',
    'X-Authenticated-Userid',
    'X-Pomerium-Claim-Email',
    'OIDC_CLAIM_sub',
    'SM_USER',
    'iv-user',
    'WL-Proxy-Client-IP',
    'X-Amzn-Oidc-Data',
    'SSL-Client-Verify',
    'X-Consumer-Username',
    'Proxy',
  ]) {
    assert.ok(isOwned(name.toLowerCase()), name)
    assert.match(ownHeader(name, 'request') ?? '', /own word to the app/, name)
  }
})

test('headers that only look like them are passed on', () => {
  for (const name of [
    'x-forwardedfor',
    'tailscaled',
    'remoteness',
    'x-originality',
    'ivory',
    'proxied',
    'x-request-id',
    'authorization',
    'cookie',
    'origin',
    'accept',
    'x-requested-with',
    'x-csrf-token',
  ]) {
    assert.equal(isOwned(name), false, name)
    assert.equal(ownHeader(name, 'request'), undefined, name)
  }
})
