import { render } from 'preact'
import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { get } from './api.ts'
import type { Me, ShownSettings } from './api.ts'
import { Failure, useLoaded } from './parts.tsx'
import { AccessPage } from './pages/access.tsx'
import { BackupPage } from './pages/backup.tsx'
import { DevicePage } from './pages/device.tsx'
import { LogsPage } from './pages/logs.tsx'
import { NodeRedPage } from './pages/node-red.tsx'
import { OverviewPage } from './pages/overview.tsx'
import { SettingsPage } from './pages/settings.tsx'
import { UpdatesPage } from './pages/updates.tsx'
import { WelcomePage } from './pages/welcome.tsx'
import { Trial } from './trial.tsx'

/** Pages by their place in the address, behind `#/`. All but the first need the right manage. */
const pages: Array<[place: string, title: string, Page: () => JSX.Element]> = [
  ['', 'Overview', OverviewPage],
  ['node-red', 'Node-RED', NodeRedPage],
  ['access', 'Access', AccessPage],
  ['settings', 'Settings', SettingsPage],
  ['logs', 'Logs', LogsPage],
  ['updates', 'Updates', UpdatesPage],
  ['backup', 'Backup', BackupPage],
  ['device', 'Device', DevicePage],
]

const here = (): string => location.hash.replace(/^#\/?/, '')

function Console(): JSX.Element {
  const [place, setPlace] = useState(here)
  const heading = useRef<HTMLHeadingElement>(null)
  const me = useLoaded<Me>('me')
  const [settings, setSettings] = useState<ShownSettings>()
  const manages = me.value?.rights.includes('manage') === true
  useEffect(() => {
    const move = (): void => {
      setPlace(here())
      // To the new page's beginning, as a page that was loaded would.
      requestAnimationFrame(() => heading.current?.focus())
    }
    addEventListener('hashchange', move)
    return () => {
      removeEventListener('hashchange', move)
    }
  }, [])
  useEffect(() => {
    // A change may be on trial from before the page was loaded.
    if (manages) get<ShownSettings>('settings').then(setSettings, () => {})
  }, [manages])
  // The first page of a new device, for whoever may change its settings.
  const fresh = me.value?.fresh === true && place === ''
  const [, ownTitle, Page] = pages.find(([name]) => name === place) ?? pages[0]!
  const title = fresh ? 'Welcome' : ownTitle
  useEffect(() => {
    document.title = `${title} · Gatehouse`
  }, [title])
  return (
    <>
      <a
        class="skip"
        href="#content"
        onClick={(event) => {
          event.preventDefault()
          heading.current?.focus()
        }}
      >
        Skip to the page
      </a>
      <header>
        <a class="brand" href="#/">
          Gatehouse
        </a>
        <nav aria-label="Pages">
          <ul>
            {pages
              .filter(([name]) => name === '' || manages)
              .map(([name, label]) => (
                <li>
                  <a href={`#/${name}`} aria-current={label === title ? 'page' : undefined}>
                    {label}
                  </a>
                </li>
              ))}
          </ul>
        </nav>
        <span class="who">{me.value?.who}</span>
      </header>
      <main id="content">
        <Trial first={settings?.trial} />
        <h1 ref={heading} tabIndex={-1}>
          {title}
        </h1>
        <Failure error={me.error} />
        {me.value !== undefined && !manages && (
          <p class="box">
            You may look at this page. Whoever has the right <code>manage</code> sees more:
            settings, logs, updates, backups. The owner has it, and{' '}
            <code>gatehouse.internal/cap/app</code> in the tailnet's policy grants it.
          </p>
        )}
        {me.value !== undefined && !fresh && <Page key={place} />}
        {fresh && <WelcomePage onDone={() => void me.again()} />}
      </main>
    </>
  )
}

render(<Console />, document.getElementById('app')!)
