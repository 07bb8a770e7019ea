package judge_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/judge"
)

// Message ids that count as long as the log has their transactions count at any
// age, and no longer once they may be trimmed.
func TestMessageIDsOfTheWholeLog(t *testing.T) {
	const later = int64(1e15)
	stored := func(txid uint64, time int64) string {
		return fmt.Sprintf(`{"transaction":{"txid":%d,"time":%d,"id":"a","content":"1"}}`, txid, time)
	}
	first := `{"operation":{"client":"c","partition":0,"start":10,"end":20,"append":{"id":"a","content":"1"},"outcome":"ok","txid":1,"time":1000}}`
	again := fmt.Sprintf(`{"operation":{"client":"c","partition":0,"start":%d,"end":%d,"append":{"id":"a","content":"1"},"outcome":"ok","txid":2,"time":%d}}`, later, later+1, later)
	refused := fmt.Sprintf(`{"operation":{"client":"c","partition":0,"start":%d,"end":%d,"append":{"id":"a","content":"1","expected_last":7},"outcome":"refused","error":{"code":409,"reason":"wrong_last","message":"m"}}}`, later, later+1)
	trim := `{"operation":{"client":"c","partition":0,"start":30,"end":40,"trim":{"before":2,"first_txid":2},"outcome":"ok"}}`
	drain := func(first int, stored ...string) string {
		line := fmt.Sprintf(`{"drain":{"replica":"n1","partition":0,"first_txid":%d,"high_water_mark":%d}}`, first, first+len(stored)-1)
		return strings.Join(append([]string{line}, stored...), "\n")
	}
	for name, c := range map[string]struct {
		window string
		lines  []string
		want   judge.Class
	}{
		"twice":                    {"-1", []string{first, again, drain(1, stored(1, 1000), stored(2, later))}, judge.AppendedTwice},
		"twice, after 2 minutes":   {"120000000000", []string{first, again, drain(1, stored(1, 1000), stored(2, later))}, ""},
		"ignored":                  {"-1", []string{first, refused, drain(1, stored(1, 1000))}, judge.IDIgnored},
		"ignored, after 2 minutes": {"120000000000", []string{first, refused, drain(1, stored(1, 1000))}, ""},
		"behind a trim":            {"-1", []string{first, trim, again, drain(2, stored(2, later))}, ""},
	} {
		header := `{"history":{"version":1,"partitions":1,"replicas":1,"all_writers":true,"message_id_window":` + c.window + `}}`
		h, err := judge.Decode(strings.NewReader(header + "\n" + strings.Join(c.lines, "\n") + "\n"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		report := judge.Check(h)
		if c.want == "" && len(report.Findings) > 0 || c.want != "" && report.Count[c.want] != 1 {
			t.Errorf("%s: %v", name, report.Findings)
		}
	}
}
