package backup_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/backup"
)

// Damage that a run has found is found by every run until it is repaired, in
// another process too, with news or without, and whatever would be merged then.
func TestDamageIsNotForgotten(t *testing.T) {
	for name, damage := range map[string]func(*memory, string){
		"flipped": func(m *memory, s string) { m.objects[s][20] ^= 1 },
		"missing": func(m *memory, s string) { delete(m.objects, s) },
	} {
		c, clock := newCluster(2), newClock()
		m := newMemory(clock.now)
		c.append(1, 1, 10)
		for range 7 {
			c.append(0, 1, 10)
			mustRun(t, backup.New(m, backup.Options{Now: clock.now}), c)
		}
		segment := m.names(".seg")[2]
		whole := slices.Clone(m.objects[segment])
		damage(m, segment)
		for i, size := range []int{10, 0, 60_000, 0} { // a large one ends what is merged
			if size > 0 {
				c.append(0, 1, size)
			}
			result, err := backup.New(m, backup.Options{Now: clock.now}).Run(t.Context(), source{c}, backup.RunOptions{})
			if !errors.Is(err, backup.ErrDamaged) || !strings.Contains(err.Error(), segment) || !slices.Equal(result.Failed, []int{0}) {
				t.Errorf("%s, run %d: %v, failed %v", name, i, err, result.Failed)
			}
			if p, _ := result.Manifest.Find(0); p.Last.Txid != c.logs[0].last.Txid {
				t.Errorf("%s, run %d: what is new is not added: %+v", name, i, p.Last)
			}
		}
		m.objects[segment] = whole
		mustRun(t, backup.New(m, backup.Options{Now: clock.now}), c)
		level(t, checkBackup(t, m, c), c)
	}
}
