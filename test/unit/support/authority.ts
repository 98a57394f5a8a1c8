import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** A throw-away certificate authority made with openssl. */
export class Authority {
  readonly directory: string = mkdtempSync(join(tmpdir(), 'gh-ca-'))
  /** PEM of the authority's certificate. */
  readonly certificate: string

  constructor() {
    this.#openssl(
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-keyout',
      'ca.key',
      '-out',
      'ca.pem',
      '-days',
      '30',
      '-subj',
      '/CN=Throw-away authority',
      '-addext',
      'basicConstraints=critical,CA:TRUE',
      '-addext',
      'keyUsage=critical,keyCertSign',
    )
    this.certificate = readFileSync(join(this.directory, 'ca.pem'), 'utf8')
  }

  /**
   * Chain and key for a name or an address, as one PEM.
   *
   * @param from start of validity, default an hour ago
   * @param to end of validity, default 90 days after the start
   */
  issue(
    name: string,
    from: Date = new Date(Date.now() - 3_600_000),
    to: Date = new Date(from.getTime() + 90 * 86_400_000),
  ): string {
    const time = (date: Date): string => date.toISOString().replace(/[-:T]|\.\d+/g, '')
    writeFileSync(
      join(this.directory, 'ext'),
      `subjectAltName=${isIP(name) === 0 ? 'DNS' : 'IP'}:${name}\n`,
    )
    this.#openssl(
      'req',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-keyout',
      'leaf.key',
      '-out',
      'leaf.csr',
      '-subj',
      `/CN=${name}`,
    )
    writeFileSync(join(this.directory, 'index.txt'), '')
    writeFileSync(
      join(this.directory, 'ca.cnf'),
      '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nnew_certs_dir=.\npolicy=p\n' +
        'default_md=sha256\nrand_serial=yes\nunique_subject=no\n[p]\ncommonName=supplied\n',
    )
    this.#openssl(
      'ca',
      '-batch',
      '-notext',
      '-config',
      'ca.cnf',
      '-cert',
      'ca.pem',
      '-keyfile',
      'ca.key',
      '-in',
      'leaf.csr',
      '-out',
      'leaf.pem',
      '-extfile',
      'ext',
      '-startdate',
      time(from),
      '-enddate',
      time(to),
    )
    return (
      readFileSync(join(this.directory, 'leaf.pem'), 'utf8') +
      this.certificate +
      readFileSync(join(this.directory, 'leaf.key'), 'utf8')
    )
  }

  close(): void {
    rmSync(this.directory, { recursive: true, force: true })
  }

  #openssl(...args: string[]): void {
    execFileSync('openssl', args, { cwd: this.directory, stdio: ['ignore', 'ignore', 'pipe'] })
  }
}
