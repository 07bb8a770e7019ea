package subjects_test

import (
	"strings"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func TestCheckOtherHeader(t *testing.T) {
	for name, c := range map[string]struct {
		key   string
		want  subjects.Treatment
		words []string // of the refusal; nil for none
	}{
		"the application's":             {"App", subjects.Stored, nil},
		"one that looks much like ours": {"X-Cantus-Kind", subjects.Stored, nil},
		"our name alone":                {"Cantus", subjects.Stored, nil},
		"NATS's":                        {"Nats-TTL", subjects.Ignored, nil},
		"NATS's in small letters":       {"nats-rollup", subjects.Ignored, nil},
		"NATS's name alone":             {"Nats", subjects.Stored, nil},
		"one that begins with a status": {"Status-Code", subjects.Stored, nil},
		"a typo":                        {"Cantus-Write-Locks", 0, []string{"Cantus-Write-Locks", "not known", "Cantus-Write-Lock,"}},
		"a typo in small letters":       {"cantus-hwm", 0, []string{"cantus-hwm", "not known"}},
		"nothing behind the dash":       {"Cantus-", 0, []string{"not known"}},
		"a header of answers":           {"Cantus-Txid", 0, []string{"not known"}},
		"letter case":                   {"cantus-write-lock", 0, []string{"did you mean", "Cantus-Write-Lock"}},
		"letter case of NATS's":         {"NATS-MSG-ID", 0, []string{"did you mean", "Nats-Msg-Id"}},
		"letter case of the expected":   {"nats-expected-last-sequence", 0, []string{"did you mean", "Nats-Expected-Last-Sequence"}},
		"another expectation":           {"Nats-Expected-Stream", 0, []string{"Nats-Expected-Stream", "not supported"}},
		"an expectation in small":       {"nats-expected-last-msg-id", 0, []string{"not supported"}},
		"a status":                      {"Status", 0, []string{"Status", "status"}},
		"a status in small letters":     {"status", 0, []string{"status"}},
		"a description":                 {"DESCRIPTION", 0, []string{"DESCRIPTION"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := subjects.CheckOtherHeader(c.key)
			if c.words != nil {
				checkRefused(t, err, subjects.BadRequest, c.words...)
				return
			}
			if err != nil || got != c.want {
				t.Errorf("%q: treatment %d and %v, want %d", c.key, got, err, c.want)
			}
		})
	}
}

// TestLetterCaseOfEveryHeader tries every header with a meaning in another
// letter case: none may be taken for the application's or NATS's.
func TestLetterCaseOfEveryHeader(t *testing.T) {
	n := 0
	for _, key := range constants(t, "Header") {
		if !subjects.IsRequestHeader(key) {
			continue
		}
		n++
		for _, other := range []string{strings.ToLower(key), strings.ToUpper(key), key[:1] + strings.ToUpper(key[1:2]) + key[2:]} {
			if subjects.IsRequestHeader(other) {
				t.Errorf("%q counts as %q", other, key)
			}
			_, err := subjects.CheckOtherHeader(other)
			checkRefused(t, err, subjects.BadRequest, "did you mean", key)
		}
	}
	if n == 0 {
		t.Error("no header has a meaning")
	}
}
