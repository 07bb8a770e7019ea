package invariant_test

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/invariant"
)

func TestAViolationIsLoggedOnceAndCounted(t *testing.T) {
	var log bytes.Buffer
	seen := 0
	for _, handle := range []func(invariant.ViolationError){
		invariant.Log(slog.New(slog.NewTextHandler(&log, nil))),
		func(v invariant.ViolationError) {
			if seen++; v.Have != 3 || v.Want != 4 || v.First != (seen == 1) || !strings.Contains(v.Error(), "have 3, want 4") {
				t.Errorf("%+v: %v", v, v.Error())
			}
		},
	} {
		defer invariant.OnViolation(handle)()
	}
	before := invariant.TxidsDense.Count()
	for range 3 {
		if !invariant.TxidsDense.Check(true, 4, 4) || invariant.TxidsDense.Check(false, 3, 4) {
			t.Error("Check does not return ok")
		}
	}
	if n := invariant.TxidsDense.Count() - before; n != 3 || seen != 3 {
		t.Errorf("%d violations, %d seen", n, seen)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "txids-dense") {
		t.Errorf("logged:\n%s", text)
	}
}

func TestAHandlerThatIsRemovedIsNotCalled(t *testing.T) {
	remove := invariant.OnViolation(func(invariant.ViolationError) { t.Error("called") })
	remove()
	defer invariant.OnViolation(func(invariant.ViolationError) {})()
	invariant.TermRises.Check(false, 0, 1)
}

func TestEventsAreCounted(t *testing.T) {
	defer invariant.OnViolation(func(v invariant.ViolationError) { t.Error(v) })()
	before := invariant.BatchVoided.Count()
	invariant.BatchVoided.Reached()
	if n := invariant.BatchVoided.Count() - before; n != 1 || !invariant.BatchVoided.IsEvent() || invariant.TermRises.IsEvent() {
		t.Errorf("counted %d", n)
	}
}

func TestNamesAreLabels(t *testing.T) {
	names := map[string]bool{}
	for _, i := range invariant.All() {
		if names[i.Name()] || !regexp.MustCompile(`^[a-z]+(-[a-z]+)+$`).MatchString(i.Name()) || i.String() == "" {
			t.Errorf("%q: %q", i.Name(), i)
		}
		names[i.Name()] = true
	}
	if len(names) < 20 {
		t.Errorf("%d assertions: the test would see little", len(names))
	}
}
