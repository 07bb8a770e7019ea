package sqlview

import (
	"strconv"
	"strings"
)

// Dialect is the SQL dialect of a database.
type Dialect struct {
	name     string
	numbered bool // $1 in place of ?
}

// Dialects.
var (
	SQLite     = Dialect{name: "sqlite"}
	PostgreSQL = Dialect{name: "postgresql", numbered: true}
)

func (d Dialect) String() string { return d.name }

// Statement returns s with each ? replaced by the dialect's placeholder. s must
// not contain ? inside a string.
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
