package broker

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cantuslog/cantus/subjects"
)

// addUnless adds the items in the value of a header to the request's condition.
func (r *request) addUnless(value []byte) error {
	items, ok := plainItem(text(value), r.unless)
	if !ok {
		var err error
		if items, err = appendItems(r.unless, text(value)); err != nil {
			return err
		}
	}
	for i := len(r.unless); i < len(items); i++ {
		if i == subjects.MaxUnless {
			return subjects.Errorf(subjects.BadRequest, "%s: there are more than %d items", subjects.HeaderUnless, subjects.MaxUnless)
		}
		if err := items[i].check(fmt.Sprintf("%s: item %d", subjects.HeaderUnless, i)); err != nil {
			return err
		}
	}
	r.unless = items
	return nil
}

// appendItems parses the value of a header in any form that JSON allows.
func appendItems(items []queryItem, value string) ([]queryItem, error) {
	type item struct {
		Kinds []string `json:"kinds"`
		Locks []string `json:"locks"`
	}
	var one struct {
		Item item `json:"item"`
	}
	var some struct {
		Items []item `json:"items"`
	}
	var err error
	switch value = strings.TrimSpace(value); {
	case value == "":
		err = subjects.Errorf(subjects.BadRequest, "body: it is empty")
	case value[0] == '[':
		err = strictJSON([]byte(`{"items":`+value+`}`), &some)
	default:
		err = strictJSON([]byte(`{"item":`+value+`}`), &one)
		some.Items = []item{one.Item}
	}
	if wrong, ok := errors.AsType[*subjects.Error](err); ok {
		return nil, subjects.Errorf(subjects.BadRequest, `%s %q: %s: give an item, such as {"kinds":["enrolled"],"locks":["course.c1"]}, or an array of items`,
			subjects.HeaderUnless, clip([]byte(value)), strings.TrimPrefix(wrong.Message, "body: "))
	}
	if len(some.Items) == 0 {
		return nil, subjects.Errorf(subjects.BadRequest, "%s has no item: leave it out for no condition", subjects.HeaderUnless)
	}
	for _, i := range some.Items {
		items = append(items, queryItem{kinds: i.Kinds, locks: i.Locks})
	}
	return items, nil
}

// plainItem appends an item as programs write it, without blanks, escapes and
// other letters than those of ASCII. Its names alias value. It returns false
// for what it does not understand, which may be valid all the same.
func plainItem(value string, items []queryItem) ([]queryItem, bool) {
	p := plainJSON{value}
	var item queryItem
	for first := true; ; first = false {
		switch {
		case first && p.skip(`{"kinds":[`), !first && p.skip(`,"kinds":[`):
			if item.kinds != nil || !p.names(&item.kinds) {
				return items, false
			}
		case first && p.skip(`{"locks":[`), !first && p.skip(`,"locks":[`):
			if item.locks != nil || !p.names(&item.locks) {
				return items, false
			}
		default:
			return append(items, item), !first && p.rest == "}"
		}
	}
}

// plainJSON is what is left of a text in JSON.
type plainJSON struct{ rest string }

func (p *plainJSON) skip(prefix string) (ok bool) {
	p.rest, ok = strings.CutPrefix(p.rest, prefix)
	return ok
}

// names reads the rest of an array of at least one plain string.
func (p *plainJSON) names(into *[]string) bool {
	for p.skip(`"`) {
		name, rest, ok := strings.Cut(p.rest, `"`)
		if !ok || !isPlain(name) {
			return false
		}
		*into, p.rest = append(*into, name), rest
		if p.skip("]") {
			return true
		}
		if !p.skip(",") {
			return false
		}
	}
	return false
}

// isPlain reports whether a string in JSON stands for itself.
func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '\\' {
			return false
		}
	}
	return true
}
