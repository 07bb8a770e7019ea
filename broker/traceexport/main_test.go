package traceexport

import (
	"strings"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
