package page

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// traffic appends transactions of a bank until stop is closed, more and less of
// them as time goes on.
func traffic(t *testing.T, n *node, stop <-chan struct{}, done *sync.WaitGroup) {
	for p := range 4 {
		done.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(p)))
			for second := 0; ; second++ {
				swell := 1 + math.Sin(float64(second)/7+float64(p)*1.3)
				var lines strings.Builder
				for range int(swell*swell*float64(9-2*p)) + random.IntN(6) {
					a, b := 40+random.IntN(60), 40+random.IntN(60)
					switch random.IntN(4) {
					case 0:
						fmt.Fprintf(&lines, `{"kind":"deposit","append_locks":["account.%d"],"payload":"{\"account\":%d,\"amount\":%d}"}`, a, a, 5*random.IntN(90))
					case 1:
						fmt.Fprintf(&lines, `{"kind":"order","append_locks":["order.%d"],"payload":"{\"item\":\"%s\",\"account\":%d}"}`, 1000+random.IntN(9000), []string{"score", "tuning fork", "reed", "rosin"}[random.IntN(4)], a)
					default:
						fmt.Fprintf(&lines, `{"kind":"transfer","append_locks":["account.%d","account.%d"],"payload":"{\"from\":%d,\"to\":%d,\"amount\":%d.50}"}`, a, b, a, b, random.IntN(400))
					}
					lines.WriteByte('\n')
				}
				n.run(t, lines.String(), "import", fmt.Sprint(p), "-", "--plain", "--name", fmt.Sprintf("%d-%d", p, second))
				select {
				case <-stop:
					return
				case <-time.After(900 * time.Millisecond):
				}
			}
		})
	}
}

// TestPagePictures takes the pictures of docs/page.md: into the directory
// PAGE_PICTURES after two minutes of traffic, otherwise at once, to see that
// they can be taken.
func TestPagePictures(t *testing.T) {
	dir, transactions, away := os.Getenv("PAGE_PICTURES"), 4000, 15
	if dir == "" {
		dir, transactions, away = t.TempDir(), 20, 0
	}
	nodes := cluster(t, "--page", "full")
	b := browse(t, nodes[0].http, media("prefers-color-scheme", "light"), emulation.SetDeviceMetricsOverride(1440, 1160, 1, false))
	b.says(nodes[0], "one node may fail")
	stop := make(chan struct{})
	var done sync.WaitGroup
	traffic(t, nodes[0], stop, &done)
	b.within(4*time.Minute, "traffic", fmt.Sprintf(
		"[...document.querySelectorAll('#partitions .mark')].reduce((sum, m) => sum + Number(m.innerText.replaceAll(',', '')), 0) > %d", transactions))
	append42 := func(mark, kind, payload string) string {
		out := nodes[0].append(t, payload, "0", "--write", "account.42", "--read", "limits.>", "--hwm", mark, "--kind", kind)
		return strings.Fields(out + " ?")[0]
	}
	at := strings.ReplaceAll(eval[string](b, "document.querySelector('#partitions .mark').innerText"), ",", "")
	first := append42(at, "deposit", `{"account":42,"amount":100}`)
	append42(at, "withdraw", `{"account":42,"amount":-80}`) // a conflict
	second := append42(first, "withdraw", `{"account":42,"amount":-80,"reason":"sheet music"}`)
	append42(first, "withdraw", `{"account":42,"amount":-50}`)
	append42(second, "deposit", `{"account":42,"amount":20}`)
	b.fill("lookup", "what", second)
	b.until("neighbors", "document.querySelectorAll('.chain a').length > 1")
	b.picture(filepath.Join(dir, "light.webp"))

	b.do(emulation.SetDeviceMetricsOverride(390, 1180, 1, true), chromedp.Click("#close"),
		chromedp.Evaluate("document.activeElement.blur(); scrollTo(0, 0)", nil))
	b.until("the width", "innerWidth === 390")
	b.picture(filepath.Join(dir, "phone.webp"))

	b.do(media("prefers-color-scheme", "dark"), emulation.SetDeviceMetricsOverride(1440, 1160, 1, false))
	nodes[2].stop()
	b.says(nodes[0], "fails too")
	b.until("some time", fmt.Sprintf("Number(/for (\\d+)s/.exec(document.querySelector('#nodes').innerText)?.[1]) >= %d", away))
	b.fill("lookup", "what", "account.42")
	b.until("the lock", "document.querySelectorAll('#details-body .row').length > 2")
	b.picture(filepath.Join(dir, "dark.webp"))
	close(stop)
	done.Wait()
	b.expectingAny()
}
