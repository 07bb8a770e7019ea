package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
)

// clockSetter is compiled into a program whose clock can be set: it takes over
// the offset in seconds that a file beside the data directory has, and then
// removes the file.
const clockSetter = `package main

import (
	"os"
	"strconv"
	"time"
)

func init() {
	for i, a := range os.Args[:len(os.Args)-1] {
		if a == "--data" {
			go takeClock(os.Args[i+1] + ".clock")
		}
	}
}

func takeClock(path string) {
	for ; ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(string(b), 10, 64); err == nil {
			time.Offset.Store(n)
			os.Remove(path)
		}
	}
}
`

// buildWithClock builds the program with a clock that jumpClock can set: the
// wall clock of the whole process, as package time returns it. The monotonic
// clock does not jump, as on a real machine.
var buildWithClock = sync.OnceValues(func() (path string, err error) {
	const before, changed = "	sec, nsec, mono := runtimeNow()\n", "	sec, nsec, mono := runtimeNow()\n	sec += Offset.Load()\n"
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	clock := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
	source, err := os.ReadFile(clock)
	if err != nil {
		return "", err
	}
	text := string(source)
	if strings.Count(text, before) != 1 || strings.Count(text, "\nimport (\n") != 1 {
		return "", fmt.Errorf("%s is not as this test knows it", clock)
	}
	text = strings.Replace(text, before, changed, 1)
	text = strings.Replace(text, "\nimport (\n", "\nimport (\n\t\"sync/atomic\"\n", 1)
	text += "\n// Offset is added to the seconds of Now.\nvar Offset atomic.Int64\n"
	dir := filepath.Dir(checker)
	command, err := filepath.Abs("../cmd/cantus/clocksetter.go")
	if err != nil {
		return "", err
	}
	replaced := map[string]string{clock: filepath.Join(dir, "time.go"), command: filepath.Join(dir, "clocksetter.go")}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		return "", err
	}
	for name, content := range map[string]string{"time.go": text, "clocksetter.go": clockSetter, "overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return "", err
		}
	}
	path = filepath.Join(dir, "cantus-with-clock")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", path, "../cmd/cantus").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build with a clock: %w\n%s", err, out)
	}
	return path, nil
})

// giveClocks has the nodes run a program whose clock can be set, and returns
// what can happen to it. There is none if another binary is tested.
func (f *faulty) giveClocks(t *testing.T) []func(*faulty) (string, error) {
	t.Helper()
	if *underTest != "" {
		t.Log("another binary: no clock jumps")
		return nil
	}
	path, err := buildWithClock()
	if err != nil {
		t.Fatal(err)
	}
	program, f.skew = path, 2*mostOffset
	return []func(*faulty) (string, error){(*faulty).jumpClock, (*faulty).jumpClocks}
}

// jumpClock has a node's clock jump for a while, or until the node is started
// again.
func (f *faulty) jumpClock() (string, error) {
	n, offset := f.anyNode(), f.offset()
	what := fmt.Sprintf("%s's clock jumped by %v", n.name, offset)
	if err := n.setClock(offset); err != nil {
		return what, err
	}
	if err := f.mix.reach(f.t.Context(), 20+f.IntN(400)); err != nil || f.IntN(2) == 0 {
		return what + ", and stays there", err
	}
	return what + ", and back", n.setClock(0)
}

// jumpClocks has all clocks jump, each by another time.
func (f *faulty) jumpClocks() (string, error) {
	what := "clocks jumped by"
	for _, n := range f.nodes {
		offset := f.offset()
		what += fmt.Sprintf(" %v", offset)
		if err := n.setClock(offset); err != nil {
			return what, err
		}
	}
	return what, f.mix.reach(f.t.Context(), 20+f.IntN(400))
}

// mostOffset is the most by which a clock is off.
const mostOffset = 24 * time.Hour

// offset returns a time by which a clock jumps, from a second to mostOffset,
// forth or back.
func (f *faulty) offset() time.Duration {
	most := []time.Duration{time.Second, 10 * time.Second, 10 * time.Minute, mostOffset}[f.IntN(4)]
	offset := max(time.Second, time.Duration(f.Int64N(int64(most))).Truncate(time.Second))
	if f.IntN(2) == 0 {
		return -offset
	}
	return offset
}

// setClock sets how far a node's clock is off, and returns when it is.
func (n *node) setClock(offset time.Duration) error {
	path := n.dir + ".clock"
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, fmt.Append(nil, int64(offset/time.Second)), 0o600); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	for deadline := time.Now().Add(testkit.Patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			return nil
		}
		select {
		case <-n.running().done:
			_ = os.Remove(path)
			return fmt.Errorf("%s has ended: its clock can't be set", n.name)
		default:
		}
	}
	return fmt.Errorf("%s has not set its clock", n.name)
}
