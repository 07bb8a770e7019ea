package page

import (
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// firstLine returns the first line of cantus status at a node.
func (n *node) firstLine(t *testing.T) string {
	t.Helper()
	line, _, _ := strings.Cut(n.run(t, "", "status"), "\n")
	return line
}

// says waits until the page's sentence is the first line of cantus status,
// which has to have a text in it.
func (b *browser) says(n *node, part string) {
	b.t.Helper()
	b.until("the sentence of "+part, fmt.Sprintf("document.querySelector('#health').textContent.includes(%q)", part))
	// Both change with the cluster: the page's is one of two answers around it.
	before := n.firstLine(b.t)
	b.until("the first line of cantus status: "+before, fmt.Sprintf("document.querySelector('#health').textContent === %q", before))
}

// append appends a transaction.
func (n *node) append(t *testing.T, payload string, args ...string) string {
	t.Helper()
	return n.run(t, payload, append([]string{"append"}, args...)...)
}

// row is the expression for the row of a transaction.
func row(partition, txid int) string {
	return fmt.Sprintf(`document.querySelector('.row[data-at="%d/%d"]')`, partition, txid)
}

func full(t *testing.T, args ...string) *node {
	t.Helper()
	return serve(t, append([]string{"--data", t.TempDir(), "--page", "full"}, args...)...)
}

// TestPageOfOneNode looks at a page as its viewer does.
func TestPageOfOneNode(t *testing.T) {
	n := full(t)
	n.append(t, `{"amount":100}`, "0", "--write", "account.42", "--hwm", "0", "--kind", "deposit")
	b := browse(t, n.http, media("prefers-color-scheme", "light"))
	b.says(n, "there is no other replica")
	b.until("four partitions", "document.querySelectorAll('#partitions tr').length === 4")
	b.until("the node", "document.querySelector('#nodes').innerText.includes('n1 this node')")
	b.until("the first transaction", row(0, 1))

	n.append(t, `{"amount":50}`, "0", "--write", "account.42", "--hwm", "1", "--kind", "deposit")
	b.until("an append", row(0, 2)+"?.innerText.includes('{\"amount\":50}')")
	b.until("the mark", "document.querySelector('#partitions .mark').innerText === '2'")
	n.append(t, `late`, "0", "--write", "account.42", "--hwm", "1")
	b.until("a conflict", "/account\\.42 was recorded by 2/.test(document.querySelector('#conflict-rows').innerText)")

	b.run("filters", func(t *testing.T) { filters(t, n, b) })
	b.run("locks", func(*testing.T) { locks(b) })
	b.run("keyboard", func(t *testing.T) { keyboard(t, b) })
	b.run("hostile", func(t *testing.T) { hostile(t, n, b) })
	b.run("widths", func(t *testing.T) { widths(t, b) })
	for _, scheme := range []string{"light", "dark"} {
		b.run(scheme, func(t *testing.T) { contrast(t, b, scheme) })
	}
	b.run("motion", func(t *testing.T) { motion(t, b) })
	b.run("gone", func(*testing.T) {
		b.expectingAny()
		n.stop()
		b.until("that the node is gone", "document.querySelector('#stream').innerText.startsWith('Not live')")
	})
}

// fill types into a field of a form, and sends the form.
func (b *browser) fill(form, name, text string) {
	b.t.Helper()
	field := fmt.Sprintf("#%s [name=%s]", form, name)
	b.do(chromedp.Evaluate(fmt.Sprintf("document.querySelector(%q).value = %q", field, text), nil), chromedp.SendKeys(field, kb.Enter))
}

func filters(t *testing.T, n *node, b *browser) {
	n.append(t, "x", "1", "--append", "order.7", "--kind", "order")
	n.append(t, "y", "2", "--append", "account.7", "--kind", "pay")
	b.until("both", row(1, 1)+" && "+row(2, 1))
	for _, f := range []struct{ name, text, has, hasNot string }{
		{"partitions", "1, 2", row(1, 1) + " && " + row(2, 1), row(0, 1)},
		{"partitions", "", row(0, 1) + " && " + row(1, 1), "false"},
		{"kind", "order", row(1, 1), row(2, 1)},
		{"kind", "", row(2, 1), "false"},
		{"lock", "account.>", row(2, 1) + " && " + row(0, 2), row(1, 1)},
		{"lock", "", row(1, 1), "false"},
	} {
		b.fill("filter", f.name, f.text)
		b.until(f.name+" "+f.text, f.has+" && !"+f.hasNot)
	}
	b.expecting(1)
	b.fill("filter", "partitions", "one")
	b.until("what is wrong", "document.querySelector('#filter-error').innerText.includes('is not a number')")
	b.fill("filter", "partitions", "")
	b.until("the filter ends", row(1, 1)+" && document.querySelector('#filter-error').innerText === ''")

	b.do(chromedp.Click("#pause"))
	n.append(t, "z", "1", "--kind", "order")
	b.until("the mark of partition 1", "document.querySelectorAll('#partitions .mark')[1].innerText === '2'")
	if eval[bool](b, "!!"+row(1, 2)) {
		t.Error("it is not paused")
	}
	b.do(chromedp.Click("#pause"))
	b.until("what came meanwhile", row(1, 2))
}

func locks(b *browser) {
	b.fill("lookup", "what", "1")
	// The title is there at once, and again with what is found.
	found := func(title, chain string) string {
		return fmt.Sprintf("/%s/.test(document.querySelector('.chain')?.innerText ?? '') && /^%s/.test(document.querySelector('#details-title').innerText)", chain, title)
	}
	b.until("the transaction and its neighbors", found("Transaction 1 of", `none before\s+1\s+after 2 deposit`))
	b.do(chromedp.Click(".chain a"))
	b.until("the next one and its neighbors", found("Transaction 2 of", `before 1 deposit\s+2\s+none after`))
	b.until("its row is marked", row(0, 2)+".getAttribute('aria-current') === 'true'")
	b.fill("lookup", "what", "account.42")
	b.until("the lock", "/^Lock account\\.42/.test(document.querySelector('#details-title').innerText)")
	b.until("its transactions", "document.querySelectorAll('#details-body .row').length === 2 && document.querySelector('#details-body').innerText.includes('Searched 1 to 2')")
	b.do(chromedp.Click(".crumbs a"))
	b.until("the subtree", "/^Lock account\\.> /.test(document.querySelector('#details-title').innerText)")
	b.expecting(1)
	b.fill("lookup", "what", "99")
	b.until("that it is not there", "document.querySelector('#details-body .trouble')?.innerText.length > 0")
	b.do(chromedp.Click("#close"))
	b.until("that nothing is looked at", "document.querySelector('#details').hidden && location.hash === ''")
}

func keyboard(t *testing.T, b *browser) {
	b.do(chromedp.Evaluate("document.querySelector('.skip').focus()", nil))
	seen := map[string]bool{}
	for range 80 {
		b.do(chromedp.KeyEvent(kb.Tab))
		at := eval[string](b, `(() => { const e = document.activeElement; return e.closest('#rows') ? 'row' : e.name || e.id || e.textContent })()`)
		seen[at] = true
		if ring := eval[string](b, "getComputedStyle(document.activeElement).outlineStyle"); ring == "none" {
			t.Errorf("%q has the focus, and nothing shows it", at)
		}
		if at == "row" {
			break
		}
	}
	for _, want := range []string{"partitions", "kind", "lock", "pause", "what", "row"} {
		if !seen[want] {
			t.Errorf("tab does not reach %s: %v", want, seen)
		}
	}
	first := eval[string](b, "document.activeElement.closest('.row').dataset.at")
	b.do(chromedp.KeyEvent(kb.ArrowDown))
	second := eval[string](b, "document.activeElement.closest('.row').dataset.at")
	if first == second {
		t.Error("the arrow stays where it is")
	}
	b.do(chromedp.KeyEvent(kb.Enter))
	b.until("the transaction has the focus", "document.activeElement.id === 'details-title' && location.hash === '#/transaction/"+second+"'")
	b.do(chromedp.KeyEvent(kb.Escape))
	b.until("its row has the focus again", "document.querySelector('#details').hidden && document.activeElement.closest('.row')?.dataset.at === '"+second+"'")
}

// hostile appends what would be markup, and what would turn the text around.
func hostile(t *testing.T, n *node, b *browser) {
	const markup = `<img src="http://evil.example/x" onerror="window.hurt=1"><script>window.hurt=1</script>`
	n.append(t, markup, "3", "--kind", "<b", "--append", "<i.x", "--header", "X: <s>", "--id", "\u202e<u>")
	b.until("the row", row(3, 1)+"?.innerText.includes('<img src')")
	b.expecting(1) // what was looked up before is not in partition 3
	b.fill("lookup", "partition", "3")
	b.fill("lookup", "what", "1")
	b.until("the payload", "document.querySelector('#details pre')?.innerText.includes('onerror')")
	if eval[bool](b, "!!window.hurt || !!document.querySelector('main img, main script, main i, main s, main u')") {
		t.Error("text became markup")
	}
	if text := b.text("#details dl"); strings.Contains(text, "\u202e") || !strings.Contains(text, `\u202e<u>`) {
		t.Errorf("the message id is %q", text)
	}
	b.do(chromedp.KeyEvent(kb.Escape))
	b.fill("lookup", "partition", "0")
}

// widths looks for a page that scrolls sideways.
func widths(t *testing.T, b *browser) {
	b.fill("lookup", "what", "2")
	b.until("details", "document.querySelector('.chain')?.innerText.includes('none after')")
	for _, width := range []int64{1440, 1024, 768, 600, 412, 360, 320} {
		b.do(emulation.SetDeviceMetricsOverride(width, 800, 1, width < 600))
		b.until("the width", fmt.Sprintf("innerWidth === %d", width))
		if wide := eval[int](b, "document.scrollingElement.scrollWidth"); int64(wide) > width {
			t.Errorf("at %d the page is %d wide: %s", width, wide, eval[string](b,
				fmt.Sprintf("[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > %d).map(e => e.tagName + '.' + e.className).slice(0, 9).join(' ')", width)))
		}
	}
	b.do(emulation.SetDeviceMetricsOverride(1440, 1000, 1, false))
}

// colors is an expression for each text with the luminances of its color and of
// what is behind it.
const colors = `(() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return canvas.getImageData(0, 0, 1, 1).data; };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255]; };
  const all = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walk.nextNode());) {
    const e = text.parentElement;
    if (!text.data.trim() || !e.checkVisibility()) continue;
    all.push({text: text.data.trim().slice(0, 40), size: parseFloat(getComputedStyle(e).fontSize), fore: light(rgb(getComputedStyle(e).color)), back: light(behind(e))});
  }
  for (const [name, e] of [['bars', '.rate'], ['lag', '.behind']].map(([n, s]) => [n, document.querySelector(s)])) {
    const style = getComputedStyle(e);
    all.push({text: name, size: 99, fore: light(rgb(name === 'bars' ? style.fill : style.stroke)), back: light(behind(document.body))});
  }
  return all;
})()`

func contrast(t *testing.T, b *browser, scheme string) {
	b.do(media("prefers-color-scheme", scheme))
	b.until(scheme, fmt.Sprintf("matchMedia('(prefers-color-scheme: %s)').matches", scheme))
	b.until("no row is fresh", "document.getAnimations().length === 0")
	type text struct {
		Text             string
		Size, Fore, Back float64
	}
	all := eval[[]text](b, colors)
	if len(all) < 50 {
		t.Errorf("%d texts: the test would see little", len(all))
	}
	dark := all[0].Back < 0.1
	if dark != (scheme == "dark") {
		t.Errorf("in %s the page is %f light", scheme, all[0].Back)
	}
	for _, one := range all {
		ratio := (math.Max(one.Fore, one.Back) + 0.05) / (math.Min(one.Fore, one.Back) + 0.05)
		if least := map[bool]float64{true: 3, false: 4.5}[one.Size >= 24]; ratio < least {
			t.Errorf("%q has a contrast of %.2f, and needs %.1f", one.Text, ratio, least)
		}
	}
}

func motion(t *testing.T, b *browser) {
	for value, want := range map[string]string{"reduce": "none", "no-preference": "fresh"} {
		b.do(media("prefers-reduced-motion", value))
		b.until(value, fmt.Sprintf("matchMedia('(prefers-reduced-motion: %s)').matches", value))
		if name := eval[string](b, "getComputedStyle(document.querySelector('.fresh')).animationName"); name != want {
			t.Errorf("with %s rows have the animation %s", value, name)
		}
	}
}

// cluster runs three nodes on loopback.
func cluster(t *testing.T, args ...string) (nodes [3]*node) {
	t.Helper()
	var routes [3]string
	for i := range routes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		routes[i] = l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	started := make(chan struct{}, 3)
	for i := range nodes {
		go func() {
			defer func() { started <- struct{}{} }()
			nodes[i] = serve(t, append([]string{"--data", filepath.Join(t.TempDir(), "d"), "--name", fmt.Sprintf("n%d", i+1), "--cluster", routes[i],
				"--routes", routes[(i+1)%3] + "," + routes[(i+2)%3], "--bootstrap", "n1,n2,n3"}, args...)...)
		}()
	}
	for range nodes {
		<-started
	}
	if t.Failed() {
		t.FailNow()
	}
	return nodes
}

// TestPageOfThreeNodes checks that the page follows a cluster as cantus status
// does.
func TestPageOfThreeNodes(t *testing.T) {
	nodes := cluster(t, "--page", "status")
	b := browse(t, nodes[0].http)
	b.says(nodes[0], "Writes are safe; one node may fail.")
	b.until("three nodes", "document.querySelectorAll('#nodes tr').length === 3")
	b.until("lag of others", "document.querySelectorAll('#partitions .replica').length >= 8")
	b.until("that transactions are not shown", "document.querySelector('#withheld').innerText.includes('--page full')")
	nodes[2].stop()
	b.says(nodes[0], "fails too")
	b.until("the node is away", "/n3 *away since/.test(document.querySelector('#nodes').innerText.replace(/\\s+/g, ' '))")
	b.until("no figure for a replica that nobody hears", "/n3 away/.test(document.querySelector('#partitions').innerText)")
	nodes[1].stop()
	b.until("it is not known to be safe", "document.querySelector('#sign').textContent === '▲'")
	if b.text("#rows") != "" {
		t.Error("a page of the status has transactions")
	}
}

// TestPageLogin logs in as a user of the NATS server.
func TestPageLogin(t *testing.T) {
	config := filepath.Join(t.TempDir(), "nats.conf")
	text := `listen: "127.0.0.1:-1"
authorization { users: [
  { user: app, password: secret }
  { user: report, password: secret, permissions: {
      publish: ["cantus.read.*", "cantus.get.*", "cantus.info", "cantus.info.*"], subscribe: ["_INBOX_report.>"] } }
] }`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n := full(t, "--nats-config", config)
	n.append(t, "hidden payload", "0", "--user", "app", "--password", "secret")
	b := browse(t, n.http)
	b.expecting(1)
	b.until("the login", "!document.querySelector('#login').hidden")
	b.do(chromedp.SendKeys("#login [name=user]", "report"))
	b.expecting(1)
	b.fill("login", "password", "wrong")
	b.until("that it is wrong", "document.querySelector('#login-error').innerText.includes('does not accept')")
	if eval[bool](b, "document.body.textContent.includes('hidden payload')") { // where it can't be seen, too
		t.Error("the page has a transaction without a login")
	}
	b.fill("login", "password", "secret")
	b.until("the transaction", row(0, 1)+"?.innerText.includes('hidden payload')")
	b.until("that conflicts are not for this user", "document.querySelector('#notices').innerText.includes('no conflicts are shown')")
	b.until("the user", "document.querySelector('#viewer').innerText === 'as user report'")
	if eval[bool](b, "document.cookie !== '' || localStorage.length > 0 || location.href.includes('secret') || document.querySelector('#login [name=password]').value !== ''") {
		t.Error("the login is kept where others find it")
	}
	b.do(chromedp.Reload())
	b.until("the transaction after a reload", row(0, 1))
	token := eval[string](b, "sessionStorage.getItem('cantus-page-token')")
	b.do(chromedp.Click("#logout"))
	b.until("the login", "!document.querySelector('#login').hidden && document.querySelector('#reading').hidden && !document.querySelector('#rows').innerText")
	b.until("that the login is forgotten", "!sessionStorage.getItem('cantus-page-token')")
	b.expecting(1)
	b.do(chromedp.Evaluate(fmt.Sprintf(
		"fetch('/page/transaction?partition=0&txid=1', {headers: {'Cantus-Page': '1', Authorization: 'Bearer ' + %q}}).then((r) => { window.answered = r.status; })", token), nil))
	b.until("an answer to the login that has ended", "window.answered")
	if status := eval[int](b, "window.answered"); status != 401 {
		t.Errorf("after the logout, its token is answered with status %d", status)
	}
}
