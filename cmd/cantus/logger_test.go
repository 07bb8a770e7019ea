package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// A line says how many like it were left out, if any were.
func TestTheLogNamesWhatIsLeftOut(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		logger := newLogger(&b, slog.LevelInfo, format)
		logger.Info("first", "not_logged_before", 0)
		logger.Info("later", "not_logged_before", 20)
		first, later, _ := strings.Cut(b.String(), "\n")
		if strings.Contains(first, "not_logged_before") || !strings.Contains(later, "20") {
			t.Errorf("%s: %s", format, &b)
		}
	}
}
