/** Small types that several resources share. */

/** The values known today, and any later one: a new value is never an error. */
export type OpenString<Known extends string> = Known | (string & {});

export interface ListParams {
  /** Items per page, 1 to 100. */
  limit?: number | undefined;
  /** `next_cursor` of an earlier page. */
  cursor?: string | undefined;
}
