//go:build enable_antithesis_sdk

package invariant_test

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/invariant"
)

// TestTheSDKSeesEveryAssertion checks that what the SDK writes for a rig has
// each assertion, and the outcomes of checks with their places in the source.
func TestTheSDKSeesEveryAssertion(t *testing.T) {
	const variable = "ANTITHESIS_SDK_LOCAL_OUTPUT" // where the SDK writes outside of a rig
	if os.Getenv(variable) != "" {
		invariant.OnViolation(func(invariant.ViolationError) {})
		invariant.TermRises.Check(true, 2, 1)
		invariant.TermRises.Check(false, 1, 2)
		invariant.BatchVoided.Reached()
		return
	}
	file := filepath.Join(t.TempDir(), "sdk.jsonl")
	again := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	again.Env = append(os.Environ(), variable+"="+file)
	if out, err := again.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	declared, outcomes := map[string]bool{}, map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var line struct {
			Assert *struct {
				ID        string `json:"id"`
				Hit       bool   `json:"hit"`
				Condition bool   `json:"condition"`
				Details   struct {
					At string `json:"at"`
				} `json:"details"`
			} `json:"antithesis_assert"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		switch a := line.Assert; {
		case a == nil:
		case !a.Hit:
			declared[a.ID] = true
		default:
			if !strings.Contains(a.Details.At, "sdk_test.go:") {
				t.Errorf("%s was checked at %s", a.ID, a.Details.At)
			}
			if outcomes[a.ID]++; a.Condition {
				outcomes[a.ID] += 10
			}
		}
	}
	for _, i := range invariant.All() {
		if !declared[i.Name()] {
			t.Errorf("%s is not declared", i.Name())
		}
	}
	if outcomes["term-rises"] != 12 || outcomes["batch-voided"] != 11 {
		t.Errorf("outcomes: %v", outcomes)
	}
}
