// Package page looks at a node's page with a browser.
package page

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// binary is the program, which make page builds.
var binary = os.Getenv("PAGE_BINARY")

// patience bounds a wait that only a hang can use up.
const patience = time.Minute

// node is a running node.
type node struct {
	nats, http string
	stop       func()
}

// serve runs a node on loopback until the test ends.
func serve(t *testing.T, args ...string) *node {
	t.Helper()
	args = append([]string{"serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"}, args...)
	cmd := exec.Command(binary, args...)
	errOut, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = errOut
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	n := &node{stop: sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})}
	t.Cleanup(n.stop)
	ready := make(chan string, 1)
	go func() {
		s := bufio.NewScanner(out)
		s.Scan()
		ready <- s.Text()
		for s.Scan() {
		}
	}()
	select {
	case line := <-ready:
		for _, word := range strings.Fields(line) {
			if at, ok := strings.CutPrefix(word, "nats="); ok {
				n.nats = at
			} else if at, ok := strings.CutPrefix(word, "http="); ok {
				n.http = at
			}
		}
	case <-time.After(patience):
	}
	if n.http == "" {
		text, _ := os.ReadFile(errOut.Name())
		t.Fatalf("%v is not ready: %s", args, text)
	}
	return n
}

// run runs a command of the program at a node, and returns its output.
func (n *node) run(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "CANTUS_SERVER="+n.nats)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out)
}

// browser is a tab, and what was wrong in it.
type browser struct {
	t   *testing.T
	ctx context.Context
	at  string // the page's origin

	mu     sync.Mutex
	wrong  []string
	asked  []string // addresses of requests
	expect int      // failed requests that a test expects
	any    bool     // from now on, any number of them
}

// browse opens a browser at a node's page.
func browse(t *testing.T, at string, opts ...chromedp.Action) *browser {
	t.Helper()
	flags := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.Flag("force-device-scale-factor", "1"),
		chromedp.Flag("disable-component-update", true), chromedp.WindowSize(1440, 1000))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), flags...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 6*patience)
	t.Cleanup(cancel)
	origin, _, _ := strings.Cut(strings.TrimPrefix(at, "http://"), "/")
	b := &browser{t: t, ctx: ctx, at: "http://" + origin}
	chromedp.ListenTarget(ctx, b.hear)
	b.do(network.Enable(), log.Enable(), runtime.Enable())
	b.do(opts...)
	b.do(chromedp.Navigate(at))
	t.Cleanup(b.check)
	return b
}

// hear records errors in the console, and requests.
func (b *browser) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.wrong = append(b.wrong, e.ExceptionDetails.Error())
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
			b.wrong = append(b.wrong, fmt.Sprintf("console: %s", e.Args[0].Value))
		}
	case *log.EventEntryAdded:
		if e.Entry.Source == log.SourceNetwork && (b.any || b.expect > 0) {
			b.expect = max(0, b.expect-1)
			return
		}
		if e.Entry.Level == log.LevelError || e.Entry.Level == log.LevelWarning {
			b.wrong = append(b.wrong, fmt.Sprintf("log: %s %s", e.Entry.Text, e.Entry.URL))
		}
	case *network.EventRequestWillBeSent:
		b.asked = append(b.asked, e.Request.URL)
	}
}

// check reports what was wrong: errors, requests to anywhere else, and an error
// that did not come, which would hide another one.
func (b *browser) check() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.wrong {
		b.t.Error("in the browser:", text)
	}
	if b.expect > 0 {
		b.t.Errorf("%d requests did not fail, and should have", b.expect)
	}
	if len(b.asked) < 5 {
		b.t.Errorf("the browser asked for %d things: the test would see little", len(b.asked))
	}
	for _, at := range b.asked {
		u, err := url.Parse(at)
		if err != nil || u.Scheme+"://"+u.Host != b.at {
			b.t.Errorf("the page asked for %s, which is not at %s", at, b.at)
		}
	}
}

// expecting lets a request fail, which the browser logs as an error.
func (b *browser) expecting(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expect += n
}

// expectingAny lets all requests from now on fail.
func (b *browser) expectingAny() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.any = true
}

// run runs a part of a test.
func (b *browser) run(name string, part func(t *testing.T)) {
	whole := b.t
	whole.Run(name, func(t *testing.T) {
		b.t = t
		defer func() { b.t = whole }()
		part(t)
	})
}

func (b *browser) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// eval returns the value of an expression.
func eval[T any](b *browser, expression string) (value T) {
	b.t.Helper()
	b.do(chromedp.Evaluate(expression, &value))
	return value
}

// until waits until an expression is true.
func (b *browser) until(what, expression string) {
	b.t.Helper()
	b.within(patience, what, expression)
}

// within waits until an expression is true, for a time at most.
func (b *browser) within(patience time.Duration, what, expression string) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		if eval[bool](b, "!!("+expression+")") {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: not in time; the page has\n%s", what, eval[string](b, "document.body.innerText"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (b *browser) text(selector string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector))
}

// media sets a preference of the viewer's.
func media(name, value string) chromedp.Action {
	return emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: name, Value: value}})
}

// picture writes what the browser shows to a file.
func (b *browser) picture(file string) {
	b.t.Helper()
	b.do(chromedp.ActionFunc(func(ctx context.Context) error {
		shown, err := page.CaptureScreenshot().WithFormat(page.CaptureScreenshotFormatWebp).WithQuality(92).Do(ctx)
		if err != nil {
			return err
		}
		return os.WriteFile(file, shown, 0o644)
	}))
}
