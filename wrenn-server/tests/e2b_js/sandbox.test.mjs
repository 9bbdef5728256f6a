// E2B's client as it is published, against a wrenn-server that E2B_API_URL and E2B_SANDBOX_URL name.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import http from 'node:http'
import os from 'node:os'
import path from 'node:path'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { BuildError, CommandExitError, NotFoundError, Sandbox, Template, waitForPort } from 'e2b'

const made = []

async function create(template, options) {
  const [name, rest] = typeof template === 'string' ? [template, options] : ['base', template]
  const sandbox = await Sandbox.create(name, { timeoutMs: 300_000, ...rest })
  made.push(sandbox)
  return sandbox
}

async function eventually(what) {
  const end = Date.now() + 60_000
  while (!(await what())) {
    assert.ok(Date.now() < end, 'it does not come')
    await sleep(100)
  }
}

function fetchFrom(host, path, headers = {}) {
  const { hostname, port } = new URL(process.env.E2B_SANDBOX_URL)
  return new Promise((resolve, reject) => {
    const request = http.get({ hostname, port, path, headers: { Host: host, ...headers } }, (answer) => {
      let text = ''
      answer.on('data', (piece) => (text += piece))
      answer.on('end', () => resolve([answer.statusCode, text]))
    })
    request.on('error', reject)
  })
}

after(async () => {
  await Promise.all(made.map((sandbox) => sandbox.kill()))
})

test('commands run', async () => {
  const sandbox = await create({ envs: { WHO: 'ada' }, metadata: { a: 'b & c' } })
  const told = []
  const result = await sandbox.commands.run('echo $WHO; echo err >&2', { onStdout: (text) => told.push(text) })
  assert.deepEqual([result.stdout, result.stderr, result.exitCode, told.join('')], ['ada\n', 'err\n', 0, 'ada\n'])
  await assert.rejects(sandbox.commands.run('exit 7'), (error) => error instanceof CommandExitError && error.exitCode === 7)
  const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(cat.pid, 'žluť\n')
  await eventually(() => cat.stdout === 'žluť\n')
  assert.ok((await sandbox.commands.list()).some((one) => one.pid === cat.pid))
  assert.equal(await sandbox.commands.kill(cat.pid), true)
  const info = await sandbox.getInfo()
  assert.deepEqual([info.sandboxId, info.metadata, info.state], [sandbox.sandboxId, { a: 'b & c' }, 'running'])
})

test('files are written, read, listed and watched', async () => {
  const sandbox = await create()
  await sandbox.files.write('/home/user/a', 'text')
  await sandbox.files.write('/home/user/b', new Uint8Array([0, 255, 254]).buffer)
  assert.equal(await sandbox.files.read('/home/user/a'), 'text')
  assert.deepEqual([...(await sandbox.files.read('/home/user/b', { format: 'bytes' }))], [0, 255, 254])
  const names = (await sandbox.files.list('/home/user')).map((entry) => entry.name)
  assert.ok(names.includes('a') && names.includes('b'))
  const events = []
  const watch = await sandbox.files.watchDir('/home/user', (event) => events.push(event.name))
  await sandbox.files.rename('/home/user/a', '/home/user/c')
  await eventually(() => events.includes('c'))
  await watch.stop()
  await sandbox.files.remove('/home/user/c')
  assert.equal(await sandbox.files.exists('/home/user/c'), false)
})

test('a pause keeps files and the output of what runs', async () => {
  const sandbox = await create()
  await sandbox.files.write('/home/user/kept', 'kept')
  const command = await sandbox.commands.run('python3 -uc "import time\nfor i in range(300): print(i + 1), time.sleep(0.01)"', {
    background: true,
    timeoutMs: 0,
  })
  await sleep(500)
  assert.equal(await sandbox.pause(), true)
  assert.equal((await sandbox.getInfo()).state, 'paused')
  assert.equal(await sandbox.pause(), false)
  const same = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 300_000 })
  assert.equal(await same.files.read('/home/user/kept'), 'kept')
  const result = await command.wait()
  assert.equal(result.stdout, Array.from({ length: 300 }, (_, number) => `${number + 1}\n`).join(''))
})

test('a request wakes what was asked to be woken', async () => {
  const sandbox = await create({ lifecycle: { onTimeout: 'pause', autoResume: true } })
  await sandbox.pause()
  assert.equal((await sandbox.commands.run('echo awake')).stdout, 'awake\n')
})

test('a terminal is typed at', async () => {
  const sandbox = await create()
  let said = ''
  const terminal = await sandbox.pty.create({
    cols: 80,
    rows: 24,
    timeoutMs: 0,
    onData: (data) => (said += new TextDecoder().decode(data)),
  })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; echo he""llo\n'))
  await eventually(() => said.includes('24 80') && said.includes('hello'))
  await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 30 })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size\n'))
  await eventually(() => said.includes('30 100'))
  assert.equal(await sandbox.pty.kill(terminal.pid), true)
})

test('a server of a sandbox is reached by its host', async () => {
  const sandbox = await create({ network: { allowPublicTraffic: false } })
  await sandbox.commands.run('cd /tmp && echo hello > a && python3 -m http.server 8000', { background: true })
  const token = { 'e2b-traffic-access-token': sandbox.trafficAccessToken }
  await eventually(async () => (await fetchFrom(sandbox.getHost(8000), '/a', token))[1] === 'hello\n')
  assert.equal((await fetchFrom(sandbox.getHost(8000), '/a'))[0], 403)
})

test('files have signed addresses', async () => {
  const sandbox = await create()
  await sandbox.files.write('/home/user/a', 'signed')
  const answer = await fetch(await sandbox.downloadUrl('/home/user/a', { useSignatureExpiration: 60 }))
  assert.equal(await answer.text(), 'signed')
})

test('lists, snapshots, forks, time-outs and metrics', async () => {
  const sandbox = await create({ metadata: { test: 'js' } })
  const page = await Sandbox.list({ query: { metadata: { test: 'js' } }, limit: 1 }).nextItems()
  assert.deepEqual(page.map((one) => one.sandboxId), [sandbox.sandboxId])
  await sandbox.files.write('/home/user/a', 'warm')
  const snapshot = await sandbox.createSnapshot()
  const child = await create(snapshot.snapshotId)
  assert.equal(await child.files.read('/home/user/a'), 'warm')
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
  const [fork] = await sandbox.fork({ count: 1 })
  assert.equal(await fork.files.read('/home/user/a'), 'warm')
  assert.equal(await fork.kill(), true)
  await sandbox.setTimeout(100_000)
  const left = (await sandbox.getInfo()).endAt.getTime() - Date.now()
  assert.ok(left > 80_000 && left <= 100_000, `${left}`)
  const metrics = await sandbox.getMetrics()
  assert.ok(metrics.at(-1).memTotal > 0)
})

test('networks are changed, files are put by address, and commands are attached to', async () => {
  const sandbox = await create({ allowInternetAccess: false })
  await sandbox.updateNetwork({ denyOut: ['8.8.8.8/32'] })
  assert.deepEqual((await sandbox.getInfo()).network.denyOut, ['8.8.8.8/32'])
  const form = new FormData()
  form.append('file', new Blob(['put']), 'x')
  const answer = await fetch(await sandbox.uploadUrl('/home/user/put'), { method: 'POST', body: form })
  assert.equal(answer.status, 200)
  assert.equal(await sandbox.files.read('/home/user/put'), 'put')
  assert.equal((await sandbox.files.getInfo('/home/user/put')).size, 3)
  assert.equal(await sandbox.files.makeDir('/home/user/made'), true)
  const command = await sandbox.commands.run('sleep 1; echo done', { background: true })
  const attached = await sandbox.commands.connect(command.pid)
  assert.equal((await attached.wait()).stdout, 'done\n')
  const snapshot = await sandbox.createSnapshot()
  const listed = await Sandbox.listSnapshots({ sandboxId: sandbox.sandboxId }).nextItems()
  assert.deepEqual(listed.map((one) => one.snapshotId), [snapshot.snapshotId])
  await Sandbox.deleteSnapshot(snapshot.snapshotId)
})

test('what has ended is not found', async () => {
  const sandbox = await create()
  assert.equal(await sandbox.kill(), true)
  assert.equal(await sandbox.isRunning(), false)
  await assert.rejects(Sandbox.connect(sandbox.sandboxId), NotFoundError)
  await assert.rejects(Sandbox.create('no-such-template'), /no-such-template/)
})

test('templates are built', async () => {
  const place = fs.mkdtempSync(path.join(os.tmpdir(), 'wrenn-test-'))
  const name = `t${Date.now()}`
  try {
    fs.mkdirSync(path.join(place, 'app'))
    fs.writeFileSync(path.join(place, 'app', 'a.txt'), 'text')
    const told = []
    const recipe = () =>
      Template({ fileContextPath: place })
        .fromTemplate('base')
        .setUser('root')
        .runCmd('echo made > /made')
        .copy('app', '/srv/app', { user: 'user', mode: 0o750 })
        .setEnvs({ COLOUR: 'blue' })
        .setWorkdir('/srv/app')
        .setUser('user')
        .setStartCmd('python3 -m http.server 8123', waitForPort(8123))
    const built = await Template.build(recipe(), name, { onBuildLogs: (entry) => told.push(entry.message) })
    assert.equal(built.name, name)
    assert.ok(told.some((message) => message.includes('RUN echo made')), told.join('\n'))
    const sandbox = await create(name)
    const result = await sandbox.commands.run('cat /made a.txt; stat -c "%U %a" a.txt; echo $COLOUR; curl -s localhost:8123/a.txt', {
      cwd: '/srv/app',
    })
    assert.equal(result.stdout, 'made\ntextuser 750\nblue\ntext')
    await Template.build(recipe(), `${name}:again`, { onBuildLogs: (entry) => told.push(entry.message) })
    assert.ok(told.some((message) => message.includes('CACHED')), told.join('\n'))
    assert.ok((await Template.exists(`${name}:again`)) && !(await Template.exists(`${name}:never`)))
    await Template.assignTags(`${name}:again`, 'stable')
    assert.deepEqual((await Template.getTags(name)).map((tag) => tag.tag), ['again', 'default', 'stable'])
    await Template.removeTags(name, 'again')
    const failing = Template().fromBaseImage().runCmd('echo to see >&2; exit 7')
    await assert.rejects(Template.build(failing, name), (error) => error instanceof BuildError && /exit 7[^]*to see/.test(error.message))
    const begun = await Template.buildInBackground(failing, name)
    await eventually(async () => (await Template.getBuildStatus(begun)).status === 'error')
  } finally {
    fs.rmSync(place, { recursive: true })
  }
})
