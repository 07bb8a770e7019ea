package e2e_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestStatusSaysWhatOneMoreLossDoes kills one node of three, then a second one,
// and starts both again. The first line of the status says each time whether
// writes are safe.
func TestStatusSaysWhatOneMoreLossDoes(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "2")
	ask := func(code int, want string, args ...string) {
		t.Helper()
		pattern := regexp.MustCompile("(?m)" + want)
		if err := c.until(t.Context(), want, func(context.Context) string {
			got, out, errs := cantus(t, append(args, "--server", c.url())...)
			if got != code || !pattern.MatchString(out+errs) {
				return fmt.Sprintf("exit %d\n%s%s", got, out, errs)
			}
			return ""
		}); err != nil {
			t.Error(err)
		}
	}
	const clock = `\d\d:\d\d:\d\d UTC`
	ask(0, `\AWrites are safe; one node may fail\.$`, "status")
	ask(0, `^One of the nodes n1, n2, n3 may be restarted now; n\d has run for longest\.$`, "upgrade", "check")

	c.node("n3").kill()
	ask(0, `\AWrites are safe, but if node n1 or n2 fails too, all partitions stop\.$`, "status")
	ask(0, `^node n3, away since `+clock+`, for \d+s$`, "status")
	ask(4, `^cantus: node n1 may not be restarted now: .*node n3 is away since `+clock, "upgrade", "check", "--node", "n1")

	c.node("n2").kill()
	ask(4, `\ANo partition has a leader: all writes fail since `+clock+`; nodes n2 and n3 are away; `, "status")
	ask(4, `^\{"health":\{"text":"No partition has a leader.*"safe":false,.*"leaderless":\[0,1\],"leaderless_since":"`, "status", "--json")
	ask(4, `^cantus: no node may be restarted now: no partition has a leader`, "upgrade", "check")

	var starting errgroup.Group
	starting.Go(c.node("n2").start)
	starting.Go(c.node("n3").start)
	if err := starting.Wait(); err != nil {
		t.Fatal(err)
	}
	ask(0, `^Node n1 may be restarted now\.$`, "upgrade", "check", "--node", "n1", "--wait", "1m")
	ask(0, `\AWrites are safe; one node may fail\.$`, "status")
	if code, _, errs := cantus(t, "upgrade", "check", "--node", "n4", "--server", c.url()); code != 2 || !strings.Contains(errs, `there is no node "n4"`) {
		t.Errorf("exit %d: %s", code, errs)
	}
}
