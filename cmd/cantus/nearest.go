package main

import "slices"

// nearest returns the candidate that is most similar to word, "" if none is:
// one letter of three may differ, and one of a shorter word.
func nearest(word string, candidates []string) string {
	best, bestDistance := "", max(len(word)/3, 1)+1
	for _, c := range candidates {
		if d := editDistance(word, c); d < min(bestDistance, len(word)) {
			best, bestDistance = c, d
		}
	}
	return best
}

// editDistance returns how many bytes must be inserted, removed, changed or
// swapped with the next one to turn a into b.
func editDistance(a, b string) int {
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = slices.Min([]int{change, row[j+1] + 1, next[j] + 1})
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
