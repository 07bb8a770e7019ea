//go:build (powercut || encryption) && linux

package e2e_test

import (
	"io"
	"net/http"
	"regexp"
	"strconv"
	"testing"
)

var journalFrames = regexp.MustCompile(`(?m)^cantus_journal_frames_total (\S+)$`)

// frames is how often the node's journal has been synced.
func (n *node) frames(t *testing.T) int {
	t.Helper()
	r, err := http.Get(n.http + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := journalFrames.FindSubmatch(body)
	if found == nil {
		t.Fatalf("no frames in %s", body)
	}
	f, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(f)
}
