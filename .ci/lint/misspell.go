package main

import (
	"go/token"
	"strings"

	"github.com/golangci/misspell"
	"golang.org/x/tools/go/analysis"
)

// misspelled looks for common misspellings in comments.
var misspelled = &analysis.Analyzer{
	Name: "misspell",
	Doc:  "common misspellings in comments",
	Run: func(pass *analysis.Pass) (any, error) {
		dictionary := misspell.New()
		for _, f := range pass.Files {
			for _, group := range f.Comments {
				for _, c := range group.List {
					_, found := dictionary.Replace(c.Text)
					for _, word := range found {
						at := c.Pos() + token.Pos(strings.Index(c.Text, word.Original))
						pass.Reportf(at, "%q is a misspelling of %q", word.Original, word.Corrected)
					}
				}
			}
		}
		return nil, nil
	},
}
