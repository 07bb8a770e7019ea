package sqlview

import (
	"strconv"
	"strings"
)

// Dialect is a database's way to write SQL.
type Dialect struct {
	name     string
	numbered bool // $1 where others write ?
}

// The dialects.
var (
	SQLite     = Dialect{name: "sqlite"}
	PostgreSQL = Dialect{name: "postgresql", numbered: true}
)

func (d Dialect) String() string { return d.name }

// Statement has the dialect's placeholders where s has ?, which must not stand
// within a string.
func (d Dialect) Statement(s string) string {
	if !d.numbered {
		return s
	}
	var b strings.Builder
	n := 0
	for _, r := range s {
		if r != '?' {
			b.WriteRune(r)
			continue
		}
		n++
		b.WriteString("$" + strconv.Itoa(n))
	}
	return b.String()
}
