package config

import "strings"

// didYouMean returns a hint with the word that is nearest to what was written,
// to be put at the end of a sentence; empty if none is near.
func didYouMean(written string, words []string) string {
	written = strings.ToLower(written)
	best, least := "", 1+min(3, len(written)/3)
	for _, w := range words {
		if d := distance(written, strings.ToLower(w)); d < least {
			best, least = w, d
		}
	}
	if best == "" {
		return ""
	}
	return " (did you mean " + best + "?)"
}

// distance returns how many bytes have to be added, removed or replaced to make
// a into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
